"""Decoded pictures on disk, at the model's size: a 2k JPEG 2000 radiograph takes half a second to decode, once."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import ImageReader, ImageSource, Pixels
from grrcoca_cli.data.images import resize_to_fit
from grrcoca_cli.errors import UnreadableImage
from grrcoca_cli.files import explain_os_errors

_TOTAL = "bytes"
"""File that counts the bytes of all entries; its lock is the cache's."""

_YOUNG = 2.0  # seconds in which a file may change again without its time stamps telling

_ABANDONED = 3600.0  # seconds after which nobody is writing an entry any more

Stat = tuple[int, int, int, int]


@dataclass
class CachedReader:
    """An image reader that decodes each picture once, for all processes and runs that share a folder.

    An entry is found by the SHA-256 of the file's content and of ``contract``, so that another file in the same place
    or another window never gets the old pixels. It holds the picture as `images.fit_image` resizes it, before bars are
    added: fitting it again changes nothing. Grey pictures are kept as one channel of uint16 (off by at most 1/131070),
    colour as three of uint8 (1/510); a model fed from the cache sees the same pixels in every epoch.

    Attributes:
        read: Reads a picture that is not there yet; its refusals are not kept.
        folder: Made if absent; may be deleted at any time.
        size: Edge of the model's pictures, in pixels.
        fit: ``letterbox`` or ``squash``.
        contract: Everything else that changes pixels: reader, window, versions.
        max_bytes: Nothing is added above it. Nothing is thrown out either: each epoch reads every picture once, and
            then any entry is as good as another.
    """

    read: ImageReader
    folder: Path
    size: int
    fit: str
    contract: str
    max_bytes: int
    _known: dict[Path, tuple[Stat, str]] = field(default_factory=dict, repr=False)

    def __call__(self, source: ImageSource) -> Pixels:
        """The picture (C, h, w) in [0, 1], ``max(h, w) == size``."""
        entry = self.folder / self._name(source)
        if (kept := _load(entry)) is not None:
            return kept
        pixels = resize_to_fit(self.read(source), self.size, self.fit).numpy()
        packed = _pack(pixels)
        self._save(entry, packed)
        return _unpack(packed)  # as the next epoch will see it

    def _name(self, source: ImageSource) -> str:
        """Path of the entry below the folder; the content is read again only where the file's time stamps changed."""
        if isinstance(source, bytes):
            return self._hashed(source)
        try:
            described = source.stat()
            stat = (described.st_ino, described.st_size, described.st_mtime_ns, described.st_ctime_ns)
            known = self._known.get(source)
            if known is not None and known[0] == stat:
                return known[1]
            name = self._hashed(source.read_bytes())
        except OSError as error:
            raise UnreadableImage("cannot be opened", error.strerror or type(error).__name__) from None
        if time.time() - max(described.st_mtime, described.st_ctime) > _YOUNG:
            self._known[source] = stat, name
        return name

    def _hashed(self, content: bytes) -> str:
        digest = hashlib.sha256(f"{self.contract}|{self.size}|{self.fit}|".encode())
        digest.update(content)
        name = digest.hexdigest()
        return f"{name[:2]}/{name}.npy"

    def _save(self, entry: Path, packed: NDArray[np.uint8 | np.uint16]) -> None:
        with explain_os_errors(self.folder):
            entry.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, packed)
                    size = file.tell()
                with _locked_total(self.folder) as total:
                    if total[0] + size <= self.max_bytes and not entry.exists():
                        Path(name).replace(entry)
                        total[0] += size
            finally:
                Path(name).unlink(missing_ok=True)


def _counted(folder: Path) -> int:
    """Bytes of all entries, where the count was lost with a process; what such a one left half written is removed."""
    for left in folder.glob("*/*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    return sum(entry.stat().st_size for entry in folder.glob("*/*.npy"))


@contextmanager
def _locked_total(folder: Path) -> Iterator[list[int]]:
    """The count of bytes, alone with it; what the block puts in its place is kept."""
    with (folder / _TOTAL).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # falls with the file, however this ends
        file.seek(0)
        text = file.read()
        total = [int(text) if text.isdigit() else _counted(folder)]
        before = total[0]
        yield total
        if total[0] != before:
            file.truncate(0)
            file.write(b"%d" % total[0])


def _load(entry: Path) -> Pixels | None:
    """The pixels of an entry; None where there is none, or it is damaged."""
    try:
        packed = np.load(entry, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return _unpack(packed) if packed.ndim == 3 and packed.dtype in (np.uint8, np.uint16) else None


def _pack(pixels: Pixels) -> NDArray[np.uint8 | np.uint16]:
    """(C, H, W) in [0, 1] as integers: uint16 where there is one channel, uint8 where there are three."""
    kind = np.uint16 if len(pixels) == 1 else np.uint8
    return np.rint(pixels * np.iinfo(kind).max).astype(kind)


def _unpack(packed: NDArray[np.uint8 | np.uint16]) -> Pixels:
    pixels: Pixels = np.divide(packed, np.iinfo(packed.dtype).max, dtype=np.float32)
    return pixels
