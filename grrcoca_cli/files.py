"""The one way files and folders are written: whole or not at all, and never with less care than the old ones."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from grrcoca_cli.errors import CheckpointRefused, OutOfResources, RunFolderInUse, UsageError

MANIFEST = "MANIFEST.json"

LOCK = "run.lock"
"""The file of a run folder that the running process locks."""

PARTIAL = ".partial"
"""Ends the hidden names of what is being written; what a kill leaves of it can be told by that."""


@contextmanager
def explain_os_errors(path: Path, need: int = 0) -> Iterator[None]:
    """Turn a full disk, a missing permission and their like into one line that names ``path``.

    Args:
        path: What is written.
        need: Its size in bytes, where it is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path)).free
            needed = f"{need / 1e6:.1f} MB needed, " if need else ""
            raise OutOfResources(
                f"no space left to write {path} ({needed}{free / 1e6:.1f} MB free): free some or choose another --out"
            ) from error
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Create a folder and those above it where they are not there.

    Raises:
        OutOfResources: The disk is full.
        UsageError: A file has its name, or the place cannot be written to.
    """
    with explain_os_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            file = next(each for each in (path, *path.parents) if each.exists())
            raise UsageError(f"{file} is a file, not a folder: choose another --out") from error


def check_output_file(path: Path, option: str = "--out") -> None:
    """Refuse a file that cannot be written, before the work that it is to hold; its folder is created.

    Args:
        path: The file to be.
        option: What named it, for the message.

    Raises:
        UsageError: It is a folder, or its folder cannot be created or written to.
    """
    if path.is_dir() or not path.name:
        raise UsageError(f"{option} {path} is a folder: give the name of a file")
    make_folder(path.parent)
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{option} {path} cannot be written: permission denied")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def open_atomically(path: Path, need: int = 0) -> Iterator[BinaryIO]:
    """A file that replaces ``path`` when the block ends well: readers see the old file or the new one, whole.

    Args:
        path: The file to be.
        need: Its size in bytes, to name where the disk is full.

    Raises:
        OutOfResources: The disk is full; the old file is untouched.
        UsageError: The folder cannot be written to.
    """
    with explain_os_errors(path, need):
        handle, name = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _open_by_umask(Path(name))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """`open_atomically` for content that is at hand.

    Raises:
        OutOfResources: The disk is full; the old file is untouched.
        UsageError: The folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    with open_atomically(path, len(data)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` for JSON."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(target: Path, need: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends well: sealed by a manifest, flushed, renamed.

    An existing ``target`` is replaced. On any error nothing is left behind, and what was there stays.

    Args:
        target: The folder to be.
        need: Its size in bytes, to name where the disk is full.

    Raises:
        OutOfResources: The disk is full.
        UsageError: The folder cannot be written to.
    """
    with explain_os_errors(target, need):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(PARTIAL, f".{target.name}.", target.parent))
        try:
            yield temporary
            folders, files = _contents(temporary)
            entries = {str(path.relative_to(temporary)): _entry(path) for path in files}
            for path in files:
                _open_by_umask(path)
                _flush(path)
            (temporary / MANIFEST).write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")
            _flush(temporary / MANIFEST)
            for folder in folders:
                _open_by_umask(folder, 0o777)
                _flush(folder)
            _put_in_place(temporary, target)
            _flush(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders, the inner ones first and itself last, and files. `Path.rglob` passes over what it may not list."""

    def fail(error: OSError) -> None:
        raise error

    folders, files = [], []
    for root, _, names in os.walk(folder, topdown=False, onerror=fail):
        folders.append(Path(root))
        files += [Path(root, name) for name in names]
    return folders, sorted(files)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; what stands there goes aside first, so that it is back where the renaming fails."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = temporary.with_name(f"{temporary.name}.old{PARTIAL}")
    try:
        target.rename(aside)
        temporary.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Take a folder away: out of sight at once, so that a kill leaves nothing that looks like it."""
    gone = folder.with_name(f".{folder.name}.old{PARTIAL}")
    with suppress(OSError):  # what cannot be removed does no harm
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def verify_folder(folder: Path, needed: Collection[str] = ()) -> None:
    """Compare a folder with its manifest. Files that the manifest does not list may lie beside the others.

    Args:
        folder: What `new_folder` made.
        needed: Names of files that the manifest must list.

    Raises:
        CheckpointRefused: The manifest is absent or damaged, or a file is missing or differs in size or hash.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {folder / str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{folder} is not a complete checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointRefused(f"{folder / MANIFEST} is damaged") from error
    if unlisted := sorted(name for name in needed if folder / name not in listed):
        raise CheckpointRefused(f"{folder / MANIFEST} does not list {unlisted[0]}: it is damaged or of something else")
    for path, (size, sha256) in listed.items():
        if not path.is_file():
            raise CheckpointRefused(f"{path} is missing: copy the checkpoint again, whole")
        if path.stat().st_size != size or sha256_of(path) != sha256:
            raise CheckpointRefused(f"{path} differs from its manifest: the file is damaged or was changed")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _open_by_umask(path: Path, mode: int = 0o666) -> None:
    """Temporary files are private, and safetensors' are too: give what an ordinary file would have."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the lock falls with the process, however it ends.

    What an earlier holder had half written when it was killed is removed, there and one folder down.

    Raises:
        RunFolderInUse: Another process holds it.
        UsageError: The folder cannot be written to, or its file system has no locks.
    """
    lock = folder / LOCK
    make_folder(folder)
    with explain_os_errors(folder):
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            _take_lock(handle)
        except BlockingIOError as error:
            raise RunFolderInUse(f"{folder} is in use by another run: wait for it, or choose another --out") from error
        except OSError as error:
            raise UsageError(f"{lock} cannot be locked ({error.strerror}): choose --out on another disk") from error
        _remove_partial(folder)
        yield
    finally:
        os.close(handle)


def _take_lock(handle: int) -> None:
    """Lock, or raise `BlockingIOError`; once more after a moment, since `is_locked` holds it for an instant."""
    with suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    time.sleep(0.1)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: Path) -> bool:
    """Whether a process holds a run folder; also where that cannot be told."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _remove_partial(folder: Path) -> None:
    """Checkpoints are large: a run that is killed every few hours must not fill its disk with halves."""
    for path in [*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
