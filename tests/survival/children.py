"""Processes to end in any way: children of a zygote, which start in milliseconds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
Fault = tuple[str, dict[str, Any]]
"""A function of `faults` and its arguments."""


@dataclass(frozen=True)
class Trial:
    """How a child ended, and what it said."""

    code: int
    out: str
    err: str


class Child:
    """A process that the zygote forked, in a session of its own."""

    def __init__(self, zygote: "Zygote", process: int, log: Path) -> None:
        self.process = process
        self._zygote = zygote
        self._log = log
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        if self._code is None:
            self._code = self._zygote.ask({"poll": self.process})
        return self._code

    def send(self, number: int, *, group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process, number)

    def wait(self, seconds: float = 120) -> Trial:
        wait_for(lambda: self.poll() is not None, seconds, f"process {self.process} to end")
        assert self._code is not None
        texts = [Path(f"{self._log}.{name}").read_text(errors="replace") for name in ("out", "err")]
        return Trial(self._code, *texts)

    def relatives(self) -> list[int]:
        """Processes of its session that still run, itself included."""
        return members(self.process)


def sessions() -> Iterator[tuple[int, int]]:
    """Process id and session of every process that is no zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if state != "Z":
                    yield int(entry.name), int(session)


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    return [process for process, its in sessions() if its == session]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.005)


class Zygote:
    """Starts children from `tests.survival.zygote`; at its end none of them is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._started: list[int] = []

    def __enter__(self) -> Self:
        # One thread a library: a fork copies none of the others, and waits for them for ever.
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        words = [sys.executable, "-m", "tests.survival.zygote"]
        self._server = subprocess.Popen(
            words, cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        left = {process for process, session in sessions() if session in self._started}
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(10)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, function: str, **arguments: Any) -> Child:
        """Start ``tests.survival.FUNCTION``, as in ``"faults:command"``, with arguments that JSON can carry."""
        self._count += 1
        log = self.folder / f"child-{self._count}"
        request = {"function": f"tests.survival.{function}", "arguments": arguments, "log": str(log)}
        process = int(self.ask(request))
        self._started.append(process)
        return Child(self, process, log)

    def command(self, words: Sequence[object], *faults: Fault) -> Child:
        """Start ``grrcoca WORDS`` with the named ``faults`` put in."""
        return self.start("faults:command", words=[str(word) for word in words], faults=faults)
