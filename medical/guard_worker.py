"""What runs within a guarded process, and the limits that it sets itself before it touches a file.

The kernel keeps both limits; on macOS it keeps that on time alone.
"""

import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOMEM
from importlib import import_module
from typing import Any, NoReturn, cast

from grrcoca_cli.errors import GrrcocaError, UnreadableImage
from medical.guard_channel import load, pack, receive, send


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    The defaults are far from what a sound file takes. A 2k radiograph in JPEG 2000 is decoded in 0.6 s, the largest
    frame that is read at all (2**26 pixels of 32 bits) in 9 s and 2.7 GB, and a multi-frame file is held in memory
    once; a minute is also enough to bring a gigabyte over a slow network disk.

    Attributes:
        seconds: From the start of work on a file to its end; waiting in line is not counted.
        memory_mb: Private memory of a worker, in 2**20 bytes; some 80 are the interpreter's own.
    """

    seconds: float = 60.0
    memory_mb: int = 4096

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.memory_mb > 0):
            raise ValueError("limits are above zero")


def serve() -> NoReturn:
    """Run the process: take a function and limits, then an item at a time, and answer each."""
    channel, presence = socket.socket(fileno=os.dup(0)), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole job; the parent decides when a worker ends
        signal.signal(number, signal.SIG_IGN)
    # When the parent goes, SIGIO ends this process at once, also in the midst of native code
    fcntl.fcntl(presence, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(presence, fcntl.F_SETFL, fcntl.fcntl(presence, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(EOFError, ConnectionError):
        function, limits = _prepare(channel)
        while True:
            item = load(receive(channel))
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # SIGALRM ends it in the same way
            answer = _apply(function, item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(channel, answer)
            del item, answer  # not held while the next one is read
    os._exit(0)


def _prepare(channel: socket.socket) -> tuple[Callable[[Any], object], Limits]:
    """Receive function and limits, import what would else count as the first file's time, take on the limits."""
    parts = receive(channel)
    try:
        function, limits = cast("tuple[Callable[[Any], object], Limits]", load(parts))
    except Exception as error:  # whatever importing a module raises
        send(channel, pack(f"{type(error).__name__}: {error}"))
        os._exit(1)
    for module in ("grrcoca_cli.data.pictures", "pydicom.pixels.decoders"):
        import_module(module)
    _lower(resource.RLIMIT_CORE, 1)  # not 0, at which Linux still pipes a dump to a program that collects them
    _lower(resource.RLIMIT_DATA, limits.memory_mb << 20)
    send(channel, pack(""))
    return function, limits


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _apply(function: Callable[[Any], object], item: object) -> list[memoryview]:
    """The packed answer to one item; the boundary where whatever a bad file makes a parser raise gets a name."""
    try:
        return pack(function(item))
    except MemoryError:
        os._exit(ENOMEM)  # what is left of the heap serves no other file
    except GrrcocaError as error:
        return pack(error)
    except Exception as error:
        return pack(UnreadableImage("damaged", type(error).__name__))
