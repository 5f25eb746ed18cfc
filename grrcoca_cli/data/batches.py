"""From samples to batches of tensors, in an order that is a function of seed and step and of nothing else."""

import contextlib
import functools
import hashlib
import multiprocessing
import multiprocessing.context
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grrcoca_cli.data.base import (
    EVERYTHING,
    Augmentation,
    CaptionDataset,
    ImageReader,
    OrderedDataset,
    Sample,
    Share,
)
from grrcoca_cli.data.images import fit_image, normalize
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import OutOfResources, UnreadableImage, UsageError

_READ_AHEAD = 2  # batches a worker
_GRACE = 10.0  # seconds that a worker goes on after SIGTERM
_PATIENCE = 0.2  # seconds between two looks at whether to stop, while a batch is waited for


class ReadingStopped(Exception):
    """A stop was asked for while a batch was not there yet."""


class Batch(NamedTuple):
    """Pictures with their captions; B is below the batch size where pictures could not be read, and may be 0.

    Attributes:
        images: (B, 3, S, S) float32, normalised.
        tokens: (B, L) int64, begin and end token included, padded to the longest caption of the batch.
        keys: The samples' keys, B of them.
        captions: The captions that the tokens stand for, B of them.
        skipped: Unreadable pictures that were left out, by kind.
    """

    images: Tensor
    tokens: Tensor
    keys: list[str]
    captions: list[str]
    skipped: Counter[str]


class BatchOrder(NamedTuple):
    """Which samples make a batch; ``epoch`` is None in evaluation: no augmentation, the first caption."""

    epoch: int | None
    indices: list[int]


@dataclass(frozen=True)
class BatchReader:
    """Turns an order into a batch. Holds no iteration state, so any process gives the same batch for an order.

    Attributes:
        dataset: Where samples come from.
        read_image: Reads one picture; picklable.
        tokenizer: Turns captions into ids.
        image_size: Edge of the model's pictures, in pixels.
        context_length: Most tokens of a caption, begin and end included.
        fit: ``letterbox`` or ``squash``, see `images.fit_image`.
        mean, std: Normalisation of pixels in [0, 1], by channel.
        augment: Applied in training, with a seed from ``seed``, epoch and key; picklable.
        seed: Of augmentation and of the draw among several captions.
        in_memory: Keep fitted pictures after their first reading; only without worker processes.
    """

    dataset: CaptionDataset
    read_image: ImageReader
    tokenizer: CaptionTokenizer
    image_size: int
    context_length: int
    fit: str = "letterbox"
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    augment: Augmentation | None = None
    seed: int = 0
    in_memory: bool = False
    _store: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, order: BatchOrder) -> Batch:
        images, tokens, keys, captions = [], [], [], []
        skipped: Counter[str] = Counter()
        for index in order.indices:
            try:
                sample, image = self._read(index)
            except UnreadableImage as error:
                skipped[error.kind] += 1
                continue
            chosen = 0
            if order.epoch is not None:
                chosen = sample_seed(self.seed, order.epoch, sample.key, "caption") % len(sample.captions)
                if self.augment is not None:
                    own = image.clone(memory_format=torch.contiguous_format)  # an augmentation may write in place
                    image = self.augment(own, sample_seed(self.seed, order.epoch, sample.key, "augment"))
            images.append(image)
            tokens.append(torch.tensor(self.tokenizer.encode(sample.captions[chosen], self.context_length)))
            keys.append(sample.key)
            captions.append(sample.captions[chosen])
        if not keys:
            size = self.image_size
            return Batch(torch.empty(0, 3, size, size), torch.empty(0, 0, dtype=torch.long), [], [], skipped)
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_id)
        return Batch(normalize(torch.stack(images), self.mean, self.std), padded, keys, captions, skipped)

    def _read(self, index: int) -> tuple[Sample, Tensor]:
        if index in self._store:
            return self.dataset.peek(index), self._store[index]
        sample = self.dataset[index]
        image = fit_image(self.read_image(sample.image), self.image_size, self.fit)
        if self.in_memory:
            self._store[index] = image
        return sample, image


def sample_seed(seed: int, epoch: int, key: str, purpose: str) -> int:
    """A seed from 0 to 2**32 - 1 for one use of one sample in one epoch, the same on every machine."""
    words = f"{seed}/{epoch}/{purpose}/{key}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "big")


EpochOrder = Callable[[np.random.RandomState], NDArray[np.int64] | None]
"""`base.OrderedDataset.order` of a set."""


def batch_indices(length: int, batch_size: int, seed: int, step: int, order: EpochOrder | None = None) -> list[int]:
    """Positions of the samples of batch ``step``, counted from 0 over all epochs.

    Each epoch is a permutation of its own, cut into whole batches; the ``length % batch_size`` samples that remain
    are left out of that epoch, others in the next. ``order`` is that of a set that has a say in it.

    Raises:
        UsageError: The set is smaller than one batch. (Filling up with repeats would set a caption against itself in
            the contrastive loss.)
    """
    per_epoch = steps_per_epoch(length, batch_size)
    epoch, position = divmod(step, per_epoch)
    chosen = _permutation(length, seed, epoch, order)[position * batch_size : (position + 1) * batch_size]
    return cast("list[int]", chosen.tolist())


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        UsageError: There is none.
    """
    if length < batch_size:
        raise UsageError(
            f"the data set has {length} samples, fewer than one batch of {batch_size}: "
            f"set training.batch_size to at most {length}, or add data"
        )
    return length // batch_size


@functools.lru_cache(maxsize=2)  # an epoch, and its neighbour while batches are read ahead
def _permutation(length: int, seed: int, epoch: int, order: EpochOrder | None) -> NDArray[np.int64]:
    # NumPy promises that this old generator's stream never changes (NEP 19); torch and new NumPy do not.
    generator = np.random.RandomState(sample_seed(seed, epoch, "", "order"))
    chosen = order(generator) if order is not None else None
    return generator.permutation(length) if chosen is None else chosen


def training_batches(
    reader: BatchReader,
    batch_size: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    accumulation: int = 1,
    share: Share = EVERYTHING,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Batches ``start_step`` to ``steps - 1`` of a run of ``steps``, the same for every count of ``workers``.

    Args:
        reader: What reads them.
        batch_size: Samples a batch, over all processes.
        start_step: First batch; a resumed run gives the step it goes on from.
        steps: Steps of the whole run.
        workers: Reading processes; 0 reads in this one.
        accumulation: Each batch comes in this many micro-batches, one after the other.
        share: What of each micro-batch this process reads.
        should_stop: Asked while reading processes are waited for.

    Raises:
        ReadingStopped: ``should_stop`` said so; these batches end here.
        UsageError: The set is smaller than a batch, or ``in_memory`` meets ``workers``.
    """
    length, micro = len(reader.dataset), batch_size // accumulation
    per_epoch = steps_per_epoch(length, batch_size)
    order = reader.dataset.order if isinstance(reader.dataset, OrderedDataset) else None
    orders = (
        BatchOrder(step // per_epoch, share.of(indices[first : first + micro]))
        for step in range(start_step, steps)
        for indices in [batch_indices(length, batch_size, reader.seed, step, order)]
        for first in range(0, batch_size, micro)
    )
    return _load(reader, orders, workers, should_stop)


def evaluation_batches(
    reader: BatchReader, batch_size: int, workers: int = 0, share: Share = EVERYTHING
) -> Iterator[Batch]:
    """Every sample once, in order, with its first caption and without augmentation; the last batch may be short.

    Several processes take the batches in turn, each equally many: some of them end with an empty one.

    Raises:
        UsageError: ``in_memory`` meets ``workers``.
    """
    length = len(reader.dataset)
    starts = range(share.rank * batch_size, length + share.rank * batch_size, share.size * batch_size)
    orders = (BatchOrder(None, list(range(start, min(start + batch_size, length)))) for start in starts)
    return _load(reader, orders, workers)


def _load(
    reader: BatchReader,
    orders: Iterator[BatchOrder],
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    if workers and reader.in_memory:
        raise UsageError(
            f"data.in_memory keeps pictures in one process, but data.workers is {workers}: set one to its default"
        )
    return _read_in_workers(reader, orders, workers, should_stop) if workers else map(reader.__getitem__, orders)


def _read_in_workers(
    reader: BatchReader, orders: Iterator[BatchOrder], workers: int, should_stop: Callable[[], bool]
) -> Iterator[Batch]:
    # Not torch's DataLoader: it draws from the global generator that drives dropout, its SIGCHLD handler raises in
    # the middle of whatever the parent does (a save), and its workers outlive a killed parent by seconds.
    pool = ProcessPoolExecutor(workers, _worker_context(), _start_worker, (reader,))
    waiting: deque[Future[Batch]] = deque()
    try:
        for order in orders:
            waiting.append(pool.submit(_read_batch, order))
            if len(waiting) > _READ_AHEAD * workers:
                yield _wait(waiting.popleft(), should_stop)
        while waiting:
            yield _wait(waiting.popleft(), should_stop)
    except BrokenProcessPool as error:
        if should_stop():  # what was sent to the whole group met a process that was only starting
            raise ReadingStopped from error
        raise OutOfResources(
            "a reading process was killed, most likely for want of memory: lower data.workers or training.batch_size"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(batch: Future[Batch], should_stop: Callable[[], bool]) -> Batch:
    """The batch, as soon as it is there; a whole group may have been told to stop, and its workers end then."""
    while not should_stop():
        with contextlib.suppress(TimeoutError):
            return batch.result(_PATIENCE)
    if batch.done() and batch.exception() is None:
        return batch.result()
    raise ReadingStopped


def _worker_context() -> multiprocessing.context.BaseContext:
    """How workers start: never by plain fork, which copies the locks of threads that torch and tokenizers hold."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
    return context


_worker_reader: BatchReader | None = None  # set in a worker process, once, so that an order is all a batch has to send


def _start_worker(reader: BatchReader) -> None:
    global _worker_reader
    _worker_reader = reader
    torch.set_num_threads(1)
    # Both may be sent to the whole group: the parent saves, for which it may need a batch, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _start_thread(_end_after_grace))
    _start_thread(_end_with_parent)


def _start_thread(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True).start()


def _end_after_grace() -> None:
    time.sleep(_GRACE)
    os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read_batch(order: BatchOrder) -> Batch:
    assert _worker_reader is not None
    return _worker_reader[order]
