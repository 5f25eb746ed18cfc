"""Reading in worker processes that may crash, hang or eat memory: each such file is one named failure, no more.

Parsers and native codecs meet bytes that anybody may have written, and some of them abort the interpreter. So files
from outside are opened in a `medical.guard_process.Process` and never in this one.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Queue
from typing import TYPE_CHECKING, TypeVar, cast

from grrcoca_cli.data.base import AnySource, ImageSource, as_source, several
from grrcoca_cli.errors import UnreadableImage
from medical.guard_process import Process
from medical.guard_worker import Limits
from medical.image import RadiologyImage, read_image

if TYPE_CHECKING:
    from grrcoca_cli.data.base import ImageReader, Pixels

__all__ = ["DEFAULT_LIMITS", "GuardedReader", "Limits", "guarded_map", "read_images"]

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_LIMITS = Limits()

_READ_AHEAD = 4  # items a worker


def guarded_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int = 2, limits: Limits = DEFAULT_LIMITS
) -> Iterator[R | UnreadableImage]:
    """``function`` of every item, worked out in worker processes; in the order of the items.

    Lazy: a few items are read ahead of what is asked for. Workers start with the first items and end when the iterator
    does or is closed.

    Args:
        function: Of a module that can be imported, or a `functools.partial` of one. It may return numpy arrays,
            plain Python values, and the data classes, named tuples and enumerations of `medical` and
            `grrcoca_cli.data`; anything else counts as a failure.
        items: Picklable values.
        workers: Count of processes.
        limits: What one item may cost.

    Yields:
        What the function returned, or why it did not: the `UnreadableImage` that it raised, or one of the kinds
        ``"too slow"``, ``"too large"``, ``"crashed the decoder"``, and ``"damaged"`` with the name (and not the words,
        which may quote the file) of any other exception.

    Raises:
        GrrcocaError: The function raised one that is no `UnreadableImage`.
        OutOfResources: A worker does not start.
        TypeError: A worker cannot import the function.
    """
    team = [Process(function, limits) for _ in range(workers)]
    idle: Queue[Process] = Queue()
    for process in team * 2:  # twice: while one item is worked on, the next is on its way
        idle.put(process)

    def work(item: T) -> object:
        process = idle.get()
        try:
            return process(item)
        finally:
            idle.put(process)

    pool = ThreadPoolExecutor(2 * workers, "guard")
    waiting: deque[Future[object]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _READ_AHEAD * workers:
                yield cast("R | UnreadableImage", waiting.popleft().result())
        while waiting:
            yield cast("R | UnreadableImage", waiting.popleft().result())
    finally:
        for process in team:
            process.stop()
        pool.shutdown(cancel_futures=True)


def read_images(
    sources: Iterable[AnySource],
    *,
    frame: int | str = "auto",
    window: str | None = None,
    workers: int = 2,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[RadiologyImage | UnreadableImage]:
    """`read_image` of every source in worker processes: the picture, or why there is none, in order.

    Args:
        sources: Files, or the bytes of files.
        frame: As `read_image` takes it.
        window: As `read_image` takes it.
        workers: Count of processes.
        limits: What one file may cost.

    Raises:
        UsageError: `sources` is a single file; `frame` or `window` is not understood, raised with the first image.
        OutOfResources: A worker does not start.
    """
    return _read_named(several(sources, "images"), partial(read_image, frame=frame, window=window), workers, limits)


def _read_named(
    sources: Iterable[AnySource], read: Callable[[ImageSource], RadiologyImage], workers: int, limits: Limits
) -> Iterator[RadiologyImage | UnreadableImage]:
    """`guarded_map` whose errors name their file."""
    names: deque[str] = deque()

    def files() -> Iterator[ImageSource]:
        for number, source in enumerate(sources):
            file = as_source(source)
            names.append(f"image {number}" if isinstance(file, bytes) else str(file))
            yield file

    for answer in guarded_map(read, files(), workers=workers, limits=limits):
        name = names.popleft()
        yield answer.of(name) if isinstance(answer, UnreadableImage) else answer


class GuardedReader:
    """An image reader that has its pictures read by a worker process of its own.

    The process starts with the first picture, anew after a crash, and ends with this object or with the process that
    holds it. A copy that was pickled or forked into another process starts its own. Threads take turns.

    Args:
        read: The reader that does the work, as `guarded_map` takes a function.
        limits: What one file may cost.
    """

    def __init__(self, read: "ImageReader", limits: Limits = DEFAULT_LIMITS) -> None:
        self._read = read
        self._limits = limits
        self._processes: dict[int, Process] = {}  # by the id of the process that uses it: a fork inherits its parent's

    def __call__(self, source: AnySource) -> "Pixels":
        """The pixels of one file.

        Raises:
            UnreadableImage: As `read` does, and the further kinds of `guarded_map`.
            UsageError: `source` is neither a path nor bytes.
            OutOfResources: The worker does not start.
        """
        answer = self._processes.setdefault(os.getpid(), Process(self._read, self._limits))(as_source(source))
        if isinstance(answer, UnreadableImage):
            raise answer
        return cast("Pixels", answer)

    def __reduce__(self) -> tuple[type["GuardedReader"], tuple["ImageReader", Limits]]:
        return GuardedReader, (self._read, self._limits)

    def close(self) -> None:
        """End the worker process now; another picture would start one again."""
        if process := self._processes.pop(os.getpid(), None):
            process.stop()
