"""Calls to the disk that are counted, and of which one fails."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class DiskFaults:
    """Counts the calls that touch files below a folder, and fails one of them.

    Args:
        folder: Calls elsewhere are left alone.
        at: Number of the call to fail, from 1; 0 only counts.
        code: Its errno.
    """

    CALLS = ("open", "mkdir", "rename", "replace", "chmod", "fsync", "scandir", "unlink", "rmdir", "truncate")

    def __init__(self, folder: Path, at: int, code: int) -> None:
        self.folder = str(folder)
        self.at = at
        self.code = code
        self.count = 0
        self.failed = ""

    def rearm(self, at: int, code: int = 0) -> None:
        """Count from the beginning, and fail another call."""
        self.at, self.code, self.count, self.failed = at, code, 0, ""

    def hit(self, what: str) -> None:
        """One call; raises where it is the one."""
        self.count += 1
        if self.count == self.at:
            self.failed = what
            raise OSError(self.code, os.strerror(self.code), what)

    def concerns(self, target: Any, folder: int | None = None) -> bool:
        """Whether a path, a path below an open folder, or a descriptor lies below the folder."""
        if isinstance(target, int) or folder is not None:
            base = str(Path(f"/proc/self/fd/{target if isinstance(target, int) else folder}").readlink())
            return base.startswith(self.folder)
        return os.path.abspath(os.fsdecode(target)).startswith(self.folder)  # noqa: PTH100  no call of its own

    def install(self) -> None:
        """Put the counters in, for the rest of this process."""
        for name in self.CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not self.concerns(file):
                return real(file, mode, *args, **kwargs)
            if not isinstance(file, int):
                self.hit(f"open {file}")
            return _File(real(file, mode, *args, **kwargs), self)

        io.open = opened  # type: ignore[assignment]
        self._install_safetensors()

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if args and self.concerns(args[0], kwargs.get("dir_fd")):
                self.hit(f"{name} {args[0]}")
            return real(*args, **kwargs)

        return counted

    def _install_safetensors(self) -> None:
        """Its calls are made outside Python: fail before it begins, and with half a file on the disk."""
        import safetensors.torch
        from safetensors import SafetensorError

        real = safetensors.torch.save_file

        def save_file(tensors: Any, path: Path) -> None:
            for half in (False, True):
                try:
                    self.hit(f"{'half of' if half else 'no'} {path}")
                except OSError as error:
                    if half:
                        Path(path).write_bytes(b"half a file")
                    raise SafetensorError(
                        f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                    ) from error
            real(tensors, path)

        safetensors.torch.save_file = save_file  # type: ignore[assignment]


class _File:
    """A file whose reads, writes and end are counted."""

    def __init__(self, file: Any, faults: DiskFaults) -> None:
        self._file = file
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "readinto", "write", "flush", "truncate"):
            self._faults.hit(f"{name} {self._file.name}")
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._faults.hit(f"close {self._file.name}")

    def __iter__(self) -> Any:
        return iter(self._file)
