"""Shards from afar: each is fetched whole into a folder that holds a window of them, since a network seeks badly."""

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from grrcoca_cli.data.shard_names import filesystem
from grrcoca_cli.errors import GrrcocaError, UnreadableImage
from grrcoca_cli.files import explain_os_errors, sha256_of

_PREFIX = "grrcoca-shards-"
_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt, twice as many before the third
_GIVEN_UP = 600.0  # seconds in which a shard that could not be fetched is not tried again


@dataclass(frozen=True)
class WindowCache:
    """A folder of fetched shards that several processes share; the one used longest ago makes room for a new one.

    Attributes:
        folder: Where they lie.
        limit: Most shards in it, one that is being fetched included.
    """

    folder: Path
    limit: int

    @contextmanager
    def open(self, address: str, size: int, sha256: str) -> Iterator[BinaryIO]:
        """The shard at ``address``, fetched if it is not there, and compared with the index when it arrives.

        Raises:
            UnreadableImage: It cannot be fetched, or is another one than ``size`` and ``sha256`` say.
        """
        name = hashlib.blake2b(f"{address}|{sha256}".encode(), digest_size=16).hexdigest()
        target = self.folder / f"{name}.tar"
        with explain_os_errors(self.folder):
            file = _opened(target)
            while file is None:  # another process may throw a shard out just after it came
                with _locked(target.with_suffix(".lock")):  # one process fetches, the others wait for it
                    if not target.exists():
                        self._fetch(address, target, size, sha256)
                    file = _opened(target)
        with file:
            yield file

    def _fetch(self, address: str, target: Path, size: int, sha256: str) -> None:
        refused = target.with_suffix(".refused")
        with contextlib.suppress(OSError):
            if time.time() - refused.stat().st_mtime < _GIVEN_UP:
                raise UnreadableImage(refused.read_text(encoding="utf-8"))
        part = target.with_suffix(".part")
        self._make_room(part)
        try:
            reason = "" if fetch(address, part) else "shard not fetched"
            if not reason and (part.stat().st_size != size or sha256_of(part) != sha256):
                reason = "shard changed"
            if reason:
                refused.write_text(reason, encoding="utf-8")
                raise UnreadableImage(reason, address)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, part: Path) -> None:
        while True:
            with _locked(self.folder / "room.lock"):
                held = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
                surplus = len(held) + len(list(self.folder.glob("*.part"))) + 1 - self.limit
                if surplus <= len(held):
                    for path in held[: max(surplus, 0)]:
                        path.unlink()
                    part.touch()
                    return
            time.sleep(0.05)  # everything in the folder is being fetched by others


def fetch(address: str, target: Path) -> bool:
    """Copy a remote file to ``target``; False where three attempts failed.

    Raises:
        OutOfResources: The disk is full.
        UsageError: The protocol is not known, or its package is not installed.
    """
    system, path = filesystem(address)
    for attempt in range(_ATTEMPTS):
        try:
            with system.open(path, "rb") as source, target.open("wb") as file:
                while block := source.read(1 << 22):
                    with explain_os_errors(target):
                        file.write(block)
            return True
        except FileNotFoundError:
            return False
        except GrrcocaError:
            raise
        except Exception:  # each protocol's package has errors of its own, and a network fails in all ways
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE * 2**attempt)
    return False


def make_cache(folder: str, window: int) -> WindowCache:
    """A cache of ``window + 1`` shards; without a ``folder``, in a temporary one that ends with this process.

    Raises:
        UsageError: The folder cannot be written to.
    """
    if folder:
        path = Path(folder).expanduser()
        with explain_os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return WindowCache(path, window + 1)
    parent = Path(tempfile.gettempdir())
    with explain_os_errors(parent):
        _remove_orphans(parent)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = os.open(path / "owner.lock", os.O_CREAT | os.O_RDWR)  # falls with this process, however it ends
        fcntl.flock(held, fcntl.LOCK_EX)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == owner else None)
    return WindowCache(path, window + 1)


def _remove_orphans(parent: Path) -> None:
    """Folders that a killed process has left."""
    for lock in parent.glob(f"{_PREFIX}*/owner.lock"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def _opened(target: Path) -> BinaryIO | None:
    """The shard, marked as used just now; None where it is not there."""
    try:
        file = target.open("rb")
    except FileNotFoundError:
        return None
    os.utime(file.fileno())
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
