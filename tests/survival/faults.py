"""What happens to a child process: each function here puts one fault into it, by name, before its command runs."""

import atexit
import errno
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.survival.disk_faults import DiskFaults
from tests.survival.network_faults import call_home, no_network

__all__ = ["call_home", "no_network"]  # by name, as the others here


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
    """Make the caption loss of the ``count``-th micro-batch NaN, those of the trial before the first step apart."""
    from grrcoca_cli.model.coca import CoCa

    real, left = CoCa.forward, [count + 1]

    def forward(model: CoCa, *args: Any) -> Any:
        output = real(model, *args)
        if output.nll is None or not model.training or output.tokens is not None:
            return output
        left[0] -= 1
        return output._replace(nll=output.nll * float("nan")) if left[0] == 0 else output

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


def disk_fault(folder: str, at: int, code: int, report: str) -> None:
    """Fail one call below ``folder``; at the end the number of calls and the one that failed are in ``report``."""
    faults = DiskFaults(Path(folder), at, code)
    atexit.register(lambda: Path(report).write_text(json.dumps([faults.count, faults.failed])))
    faults.install()
