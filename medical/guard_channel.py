"""How a process and its guarded worker talk: pickles over a socket, with the arrays beside them and not copied."""

import io
import pickle
import socket
import struct
import sys
from dataclasses import is_dataclass
from enum import Enum

import numpy as np

from grrcoca_cli.errors import GrrcocaError

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


def pack(value: object) -> list[memoryview]:
    """The pickle of a value, behind the sizes that are to be read first, and its arrays as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(arrays)}Q", *map(len, arrays))
    return [memoryview(_HEAD.pack(len(arrays), len(pickled)) + sizes + pickled), *arrays]


def send(channel: socket.socket, parts: list[memoryview]) -> None:
    """Send what `pack` gave."""
    for part in parts:
        channel.sendall(part)


def receive(channel: socket.socket, most: int = sys.maxsize) -> list[memoryview]:
    """The pickle of a value, and its arrays, at most `most` bytes together.

    Raises:
        EOFError: The other side has ended, or announces more.
    """
    count, length = _HEAD.unpack(_read(channel, _HEAD.size))
    if 8 * count + length > most:
        raise EOFError
    head = _read(channel, 8 * count + length)  # few calls: each may cost a switch between the processes
    sizes = struct.unpack_from(f"<{count}Q", head)
    if sum(sizes) > most:
        raise EOFError
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


def load(parts: list[memoryview]) -> object:
    """Build what `receive` gave, of a sender that is trusted."""
    value: object = pickle.loads(parts[0], buffers=parts[1:])
    return value


def load_allowed(parts: list[memoryview]) -> object:
    """Build what `receive` gave, if it is made of arrays, plain values, and our own records and errors.

    Raises:
        UnpicklingError: There is another class or function in it; pickle raises much else on bytes that are no pickle.
    """
    return _AllowList(io.BytesIO(parts[0]), buffers=parts[1:]).load()


class _AllowList(pickle.Unpickler):
    """Finds no class or function but the allowed ones."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module.startswith(_OURS):
            found = super().find_class(module, name)
            is_ours = isinstance(found, type) and found.__module__ == module  # not what the module imported
            if is_ours and (is_dataclass(found) or issubclass(found, GrrcocaError | Enum | tuple)):
                return found
        raise pickle.UnpicklingError("not allowed")
