"""What happens to a child process: each function here puts one fault into it, by name, before its command runs."""

import atexit
import contextlib
import ctypes
import errno
import io
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def command(words: Sequence[str], faults: Sequence[tuple[str, dict[str, Any]]] = ()) -> None:
    """``grrcoca WORDS`` with faults put in, each ``[name, arguments]``; curves are not drawn, for a run takes less."""
    from matplotlib.figure import Figure

    from grrcoca_cli.cli import app

    Figure.savefig = lambda _, path, **__: Path(path).write_bytes(b"")  # type: ignore[method-assign]
    for name, arguments in faults:
        globals()[name](**arguments)
    app(words)


def _wrap(owner: Any, name: str, before: Callable[[Any], None]) -> None:
    """Call ``before`` with the first argument whenever ``owner.name`` is called."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(args[0] if args else None)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def signal_at(place: str, count: int, numbers: Sequence[int]) -> None:
    """Send this process signals when it comes to a place for the ``count``-th time.

    Places: ``forward`` (of a micro-batch in training), ``evaluation`` (its forward), ``log`` (a row is known),
    ``save`` (a file of a checkpoint is flushed).
    """
    from grrcoca_cli import files
    from grrcoca_cli.model.coca import CoCa
    from grrcoca_cli.training.runfolder import MetricsLog

    left = [count]

    def hit(counts: bool) -> None:
        left[0] -= counts
        if counts and left[0] == 0:
            for number in numbers:
                os.kill(os.getpid(), number)

    if place in ("forward", "evaluation"):
        _wrap(CoCa, "forward", lambda model: hit(model.training == (place == "forward")))
    elif place == "log":
        _wrap(MetricsLog, "add", lambda _: hit(True))
    else:
        _wrap(files, "_flush", lambda path: hit("step-" in str(path)))


class SlowReader:
    """An image reader that takes its time, in whatever process it reads."""

    def __init__(self, read: Callable[[Any], Any], seconds: float) -> None:
        self.read = read
        self.seconds = seconds

    def __call__(self, source: Any) -> Any:
        time.sleep(self.seconds)
        return self.read(source)


def slow_data(seconds: float) -> None:
    """Make every picture take so long."""
    from grrcoca_cli.commands import datasets

    real = datasets.image_reader
    datasets.image_reader = lambda *args: SlowReader(real(*args), seconds)


def not_finite(count: int) -> None:
    """Make the logits of the ``count``-th micro-batch NaN."""
    from grrcoca_cli.model.coca import CoCa

    real, left = CoCa.forward, [count]

    def forward(model: CoCa, *args: Any) -> Any:
        output = real(model, *args)
        left[0] -= model.training
        return output._replace(logits=output.logits * float("nan")) if left[0] == 0 and model.training else output

    CoCa.forward = forward  # type: ignore[method-assign]


def little_memory(megabytes: int) -> None:
    """Let the address space grow by so much and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def broken_logger(seconds: float = 0) -> None:
    """A TensorBoard whose disk is full from its third scalar on, and whose end takes a while."""
    import sys
    from types import ModuleType

    class SummaryWriter:
        left = 2

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def add_scalar(self, *_: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            time.sleep(seconds)

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = module


def no_network(report: str, site: str) -> None:
    """Refuse every connection and look-up beyond the machine's own sockets, and write each attempt into a file.

    Processes that this one starts find a ``sitecustomize`` in the folder ``site`` that does the same. Where the
    machine allows it, all of them live in a network name space without a network, whose own counters are added at the
    end: they see what native code tries.
    """
    Path(site, "sitecustomize.py").write_text(
        f"from tests.survival.faults import refuse_connections\nrefuse_connections({report!r})\n"
    )
    os.environ["PYTHONPATH"] = f"{site}:{os.environ['PYTHONPATH']}"
    refuse_connections(report)
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:  # CLONE_NEWNET
        atexit.register(_report_counters, report)


def refuse_connections(report: str) -> None:
    """The part of `no_network` that is of one process."""

    def refuse(what: str) -> None:
        with Path(report).open("a") as file:
            file.write(f"{what}\n")
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            if self.family != socket.AF_UNIX:
                refuse(f"connect {address}")
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            self.connect(address)
            return 0

        def sendto(self, *args: Any) -> int:
            if self.family != socket.AF_UNIX:
                refuse(f"sendto {args[-1]}")
            return super().sendto(*args)

    socket.socket = Socket  # type: ignore[misc]
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, lambda *args, **_: refuse(f"look-up {args[:1]}"))


def _report_counters(report: str) -> None:
    """What the kernel counted: connections begun, packets without a route, datagrams sent."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    counters = {names[0] + name: int(value) for names, values in zip(lines[::2], lines[1::2], strict=True)
                for name, value in zip(names[1:], values[1:], strict=True)}  # fmt: skip
    tried = {name: counters[name] for name in ("Tcp:ActiveOpens", "Ip:OutNoRoutes", "Udp:OutDatagrams")}
    if any(tried.values()):
        with Path(report).open("a") as file:
            file.write(f"kernel {tried}\n")


def call_home(native: bool = False) -> None:
    """Try to connect somewhere, to see whether that is noticed; ``native`` is not by way of Python's sockets' class."""
    import _socket

    kind = _socket.socket if native else socket.socket
    with contextlib.suppress(OSError):
        kind(socket.AF_INET, socket.SOCK_STREAM).connect(("192.0.2.1", 9))


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


def disk_fault(folder: str, at: int, code: int, report: str) -> None:
    """Fail one call below ``folder``; at the end the number of calls and the one that failed are in ``report``."""
    faults = DiskFaults(Path(folder), at, code)
    atexit.register(lambda: Path(report).write_text(json.dumps([faults.count, faults.failed])))
    faults.install()
