"""A program in a pseudo-terminal, and the screen that a person would see of it."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

WIDTHS = (40, 60, 80, 120)
GRRCOCA = (sys.executable, "-m", "grrcoca_cli")


@dataclass
class Terminal:
    """A program that has ended, and what stood on its terminal.

    Attributes:
        lines: Of the screen with its history, without trailing blanks.
        raw: All that was written.
        code: The exit code; negative for a signal.
    """

    lines: list[str]
    raw: str
    code: int

    def words(self) -> set[str]:
        """All words that stand on the screen: one that was broken is there as two others."""
        return {word for line in self.lines for word in line.split()}


def _lines(text: str, width: int) -> list[str]:
    screen = pyte.HistoryScreen(width, 50, history=2000, ratio=1)
    pyte.Stream(screen).feed(text)
    above = ["".join(row[x].data for x in range(width)) for row in screen.history.top]
    return [line.rstrip() for line in (*above, *screen.display)]


def run_in_terminal(
    words: Sequence[str],
    width: int,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    interrupt: Callable[[str], bool] | None = None,
    timeout: float = 60,
) -> Terminal:
    """Run ``words`` in a terminal of ``width`` columns; Ctrl-C is pressed once ``interrupt(output so far)`` is true."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        list(words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=clean | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | (env or {}),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    raw, end = b"", time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux: the last process has closed the terminal
                break
            if not chunk:
                break
            raw += chunk
            if interrupt is not None and interrupt(raw.decode(errors="replace")):
                os.write(ours, b"\x03")
                interrupt = None
        process.wait(timeout=max(1.0, end - time.monotonic()))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(ours)
    text = raw.decode(errors="replace")
    return Terminal(_lines(text, width), text, process.returncode)
