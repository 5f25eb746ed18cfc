"""One worker process with limits on time and memory: both its ends, and how they talk.

The worker is this module in a fresh interpreter: no fork, so that it holds no locks of ours and no torch, and no
``__main__``, so that a user's script is not run again. It writes to no terminal, leaves no core file (which would hold
the file it died of), and ends with the process that it serves, also where that one is killed. It reads what anybody
may have written, so its answers are unpickled from an allow-list of classes.

The kernel keeps both limits; on macOS it keeps that on time alone.
"""

import fcntl
import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from enum import Enum
from errno import ENOMEM
from importlib import import_module
from typing import Any, NoReturn, cast

import numpy as np

from grrcoca_cli.errors import GrrcocaError, OutOfResources, UnreadableImage

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medical.guard_process import serve; serve()"
_NUMPY = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")  # NumPy 1 and 2
    for module, name in (("numeric", "_frombuffer"), ("multiarray", "_reconstruct"), ("multiarray", "scalar"))
}
_ALLOWED = _NUMPY | {
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *(("builtins", "set"), ("builtins", "frozenset"), ("collections", "Counter"), ("pathlib", "PosixPath")),
}
_HEAD = struct.Struct("<QQ")  # count of arrays, bytes of the pickle
_OURS = ("medical.", "grrcoca_cli.errors", "grrcoca_cli.data.")


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    The defaults are far from what a sound file takes. A 2k radiograph in JPEG 2000 is decoded in 0.6 s; a minute is
    also enough to bring a multi-frame file of a gigabyte over a slow network disk. The memory holds such a file with
    its pixel data apart, or the largest frame that is read at all with its copies as floats.

    Attributes:
        seconds: From the start of work on a file to its end; waiting in line is not counted.
        memory_mb: Private memory of a worker, in 2**20 bytes; some 80 are the interpreter's own.
    """

    seconds: float = 60.0
    memory_mb: int = 4096

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.memory_mb > 0):
            raise ValueError("limits are above zero")


class Process:
    """A worker that applies one function to one item at a time; started with the first, and anew after each death.

    Args:
        function: What it does; see `medical.guard.guarded_map`.
        limits: What one item may cost.
    """

    def __init__(self, function: Callable[[Any], object], limits: Limits) -> None:
        self._function = function
        self._limits = limits
        self._turn = threading.Lock()
        self._gate = threading.Lock()  # between starting and stopping
        self._stopped = False
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None  # None while no worker lives

    def __call__(self, item: object) -> object:
        """What the function returned, or an `UnreadableImage`.

        Raises:
            GrrcocaError: The function raised one that is no `UnreadableImage`.
            OutOfResources: The worker does not start.
            TypeError: It cannot import the function.
        """
        request = _pack(item)
        with self._turn:
            has_served = self._channel is not None
            answer = self._ask(request)
            died = self._channel is None
            # It may have died of what an earlier file left behind, so the blame is for a file that kills a fresh one
            if died and has_served and cast(UnreadableImage, answer).kind != "too slow":
                answer = self._ask(request)
        if isinstance(answer, GrrcocaError) and not isinstance(answer, UnreadableImage):
            raise answer
        return answer

    def stop(self) -> None:
        """End the worker, whatever it is doing; there will be no other."""
        with self._gate:
            self._stopped = True
            if self._process and self._owner == os.getpid():
                self._process.kill()
                self._process.wait()

    def __del__(self) -> None:
        self.stop()
        if self._channel:
            self._channel.close()

    def _ask(self, request: list[memoryview]) -> object:
        channel = self._channel or self._start()
        try:
            _send(channel, request)
            return _AllowList.load_from(_receive(channel, self._limits.memory_mb << 20))
        except (EOFError, OSError):
            return self._bury()
        except Exception:  # whatever unpickling hits in an answer that no sound worker gives
            self._bury()
            return UnreadableImage("crashed the decoder", "its answer is nothing that may come out of a worker process")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the workers are the threads
        with theirs, self._gate:
            if self._stopped:
                ours.close()
                raise RuntimeError("a worker was asked after it was stopped")
            try:
                self._process = subprocess.Popen(
                    # -P: no module comes from the current folder unless the parent takes it from there
                    [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    process_group=0,  # Ctrl-C is for the parent alone
                )
            except OSError as error:
                ours.close()
                raise OutOfResources(f"a reading process does not start: {error.strerror}") from error
        self._channel = ours
        try:
            _send(ours, _pack((self._function, self._limits)))
            problem = _AllowList.load_from(_receive(ours, 2**20))
        except (EOFError, OSError):
            what = str(self._bury()).partition(": ")[2]
            raise OutOfResources(f"a reading process does not start: {what}") from None
        if problem:
            self._bury()
            raise TypeError(f"a worker process needs a function that it can import: {problem}")
        return ours

    def _bury(self) -> UnreadableImage:
        """End what is left of a worker, and say what it died of."""
        assert self._process is not None
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return UnreadableImage("crashed the decoder", "it stopped answering")
        if status == -signal.SIGALRM:
            return UnreadableImage("too slow", f"more than {self._limits.seconds:g} s")
        if status == ENOMEM:
            return UnreadableImage("too large", f"more than {self._limits.memory_mb:,} MB of memory")
        if status == -signal.SIGKILL:
            return UnreadableImage("too large", "ended by the system, most likely for want of memory")
        return UnreadableImage("crashed the decoder", signal.Signals(-status).name if status < 0 else f"exit {status}")


class _AllowList(pickle.Unpickler):
    """Builds arrays, plain values, and our own records and errors; any other class or function is refused."""

    @staticmethod
    def load_from(parts: list[memoryview]) -> object:
        return _AllowList(io.BytesIO(parts[0]), buffers=parts[1:]).load()

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module.startswith(_OURS):
            found = super().find_class(module, name)
            is_ours = isinstance(found, type) and found.__module__ == module  # not what the module imported
            if is_ours and (is_dataclass(found) or issubclass(found, GrrcocaError | Enum | tuple)):
                return found
        raise pickle.UnpicklingError("not allowed")


def _pack(value: object) -> list[memoryview]:
    """The pickle of a value, behind the sizes that are to be read first, and its arrays as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(arrays)}Q", *map(len, arrays))
    return [memoryview(_HEAD.pack(len(arrays), len(pickled)) + sizes + pickled), *arrays]


def _send(channel: socket.socket, parts: list[memoryview]) -> None:
    for part in parts:
        channel.sendall(part)


def _receive(channel: socket.socket, most: int) -> list[memoryview]:
    """The pickle of a value and its arrays, at most `most` bytes.

    Raises:
        EOFError: The other side has ended.
        UnpicklingError: They are more.
    """
    count, length = _HEAD.unpack(_read(channel, _HEAD.size))
    if 8 * count + length > most:
        raise pickle.UnpicklingError("too large")
    head = _read(channel, 8 * count + length)  # few calls: each may cost a switch between the processes
    sizes = struct.unpack_from(f"<{count}Q", head)
    if sum(sizes) > most:
        raise pickle.UnpicklingError("too large")
    return [head[8 * count :], *(_read(channel, size) for size in sizes)]


def _read(channel: socket.socket, size: int) -> memoryview:
    view = np.empty(size, np.uint8).data  # not a bytearray, which is filled with zeros first
    at = 0
    while at < size:
        # All of it in one call without the interpreter's lock, which a busy consumer is slow to give back
        received = channel.recv_into(view[at:], flags=socket.MSG_WAITALL)
        if not received:
            raise EOFError
        at += received
    return view


def serve() -> NoReturn:
    """The worker: take a function and limits from standard input, then an item at a time, and answer each."""
    channel = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGIO):  # a closed channel ends it, no signal to a whole job
        signal.signal(number, signal.SIG_IGN)
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, fcntl.fcntl(channel, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(EOFError, ConnectionError):
        function, limits = _prepare(channel)
        while True:
            parts = _receive(channel, sys.maxsize)
            item = pickle.loads(parts[0], buffers=parts[1:])
            signal.signal(signal.SIGIO, signal.SIG_DFL)  # the parent's death ends it at once, also in native code
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # and so does SIGALRM
            answer = _apply(function, item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            _send(channel, answer)
            del parts, item, answer  # not held while the next one is read
    os._exit(0)


def _prepare(channel: socket.socket) -> tuple[Callable[[Any], object], Limits]:
    """Receive function and limits, import what would else count as the first file's time, take on the limits."""
    parts = _receive(channel, sys.maxsize)
    try:
        function, limits = pickle.loads(parts[0], buffers=parts[1:])
    except Exception as error:  # whatever importing a module raises
        _send(channel, _pack(f"{type(error).__name__}: {error}"))
        os._exit(1)
    for module in ("grrcoca_cli.data.pictures", "pydicom.pixels.decoders"):
        import_module(module)
    _lower(resource.RLIMIT_CORE, 1)  # not 0, at which Linux still pipes a dump to a program that collects them
    _lower(resource.RLIMIT_DATA, limits.memory_mb << 20)
    _send(channel, _pack(""))
    return function, limits


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _apply(function: Callable[[Any], object], item: object) -> list[memoryview]:
    """The packed answer to one item; the boundary where whatever a bad file makes a parser raise gets a name."""
    try:
        return _pack(function(item))
    except MemoryError:
        os._exit(ENOMEM)  # what is left of the heap serves no other file
    except GrrcocaError as error:
        return _pack(error)
    except Exception as error:
        return _pack(UnreadableImage("damaged", type(error).__name__))
