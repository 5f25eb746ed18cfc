"""What a person sees while a command works: lines on stderr, so that stdout holds results alone."""

import os
import sys
import time


def say(text: str, *, every_rank: bool = False) -> None:
    """One line for a person; of the processes under torchrun the first one speaks, or with ``every_rank`` each."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or every_rank:
        print(text if rank == "0" else f"[process {rank}] {text}", file=sys.stderr, flush=True)


def plain(name: str) -> str:
    """A file's name on one line, without the control characters that could move a cursor or fake a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class ProgressLine:
    """A line that overwrites itself on a terminal; elsewhere a plain line now and then.

    Args:
        interval: Seconds between two lines where stderr is no terminal.
    """

    def __init__(self, interval: float = 20.0) -> None:
        self._terminal = sys.stderr.isatty()
        self._interval = 0.1 if self._terminal else interval
        if os.environ.get("RANK", "0") != "0":
            self._interval = float("inf")  # the first process shows it
        self._shown = -float("inf")
        self._open = False

    def show(self, text: str, *, last: bool = False) -> None:
        """Show ``text``, unless the last one is too fresh; the ``last`` is always shown, and its line ended."""
        now = time.monotonic()
        if (not last and now - self._shown < self._interval) or self._interval == float("inf"):
            return
        self._shown = now
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{text}")
            self._open = True
            sys.stderr.flush()
            if last:
                self.close()
        else:
            say(text)

    def close(self) -> None:
        """End an open line, so that the next output starts on its own."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False


def duration(seconds: float) -> str:
    """A span for people: ``45s``, ``12m``, ``3h05m``."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
