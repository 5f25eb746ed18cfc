"""What a person sees while a command works: lines on stderr, so that stdout holds results alone.

On a terminal, lines are wrapped between words and progress is one line that rewrites itself. Elsewhere lines are
whole and progress is a plain line now and then.
"""

import os
import sys
import textwrap
import time
from collections import deque
from typing import Self, TextIO

_BAR = 10
"""Fewest columns that a progress bar is drawn in."""

_SPARE = 3
"""Columns left free at the end of a progress line: the terminal echoes ``^C`` there, and must not wrap."""

_open_line: "Progress | None" = None


def say(text: str, *, every_rank: bool = False) -> None:
    """Print to stderr; under torchrun only rank 0 prints, or with ``every_rank`` each process."""
    rank = os.environ.get("RANK", "0")
    if rank != "0" and not every_rank:
        return
    text = wrapped(text if rank == "0" else f"[process {rank}] {text}", width_of(sys.stderr))
    if _open_line is None:
        print(text, file=sys.stderr, flush=True)
    else:
        _open_line.print_above(text)


def end_progress() -> None:
    """End the open progress line, if there is one, so that the next output starts on a line of its own."""
    if _open_line is not None:
        _open_line.close()


def print_result(text: str) -> None:
    """A line of the result, on stdout; under torchrun only rank 0 prints."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def plain(name: str) -> str:
    """A file's name on one line, without the control characters that could move a cursor or fake a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` writes to; None where it is not a terminal."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def wrapped(text: str, width: int | None) -> str:
    """``text`` wrapped between words at ``width``, each line with its own indentation; None leaves it as it is."""
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        fill = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += fill.wrap(line) or [""]
    return "\n".join(lines)


class Progress:
    """Progress of countable work: a line with a bar, the rate and the time left.

    Where stderr is not a terminal, the first state, one every ``interval`` seconds and the last state are shown.

    Args:
        doing: What is done, as in ``training``.
        total: How many units there are.
        unit: Their name, in the plural.
        of_each: How many things a unit consists of, and their name in the plural, where the rate is told in those.
        interval: Seconds between two lines where stderr is not a terminal.
    """

    def __init__(
        self, doing: str, total: int, unit: str, *, of_each: tuple[int, str] | None = None, interval: float = 20.0
    ) -> None:
        self._doing, self._total, self._unit = doing, total, unit
        self._size, self._thing = of_each or (1, unit)
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = 0.1 if self._terminal else interval
        self._silent = os.environ.get("RANK", "0") != "0"  # the first process shows it
        self._pace = Pace()
        self._done = 0
        self._details: tuple[str, ...] = ()
        self._drawn_at = -float("inf")
        self._drawn = -1  # the state that was drawn last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, done: int, *details: str) -> None:
        """Note that ``done`` units are done, and show it unless the line is fresh; ``details`` go by importance."""
        now = time.monotonic()
        self._done, self._details = done, details
        self._pace.mark(done, now)
        if not self._silent and now - self._drawn_at >= self._interval:
            self._drawn_at = now
            self._draw()

    def hide(self) -> None:
        """Wipe the line off the terminal until it is shown again, so that a result can be printed."""
        global _open_line
        if _open_line is self:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            _open_line, self._drawn, self._drawn_at = None, -1, -float("inf")

    def print_above(self, text: str) -> None:
        """Print lines above the progress line."""
        sys.stderr.write(f"\r\x1b[2K{text}\n")
        self._draw()

    def close(self) -> None:
        """Show the last state and end the line."""
        global _open_line
        echoed_over = _open_line is self  # Ctrl-C leaves ^C at the end of the line
        if not self._silent and self._pace.marks and (self._drawn != self._done or echoed_over):
            self._draw()
        if _open_line is self:
            sys.stderr.write("\n")
            sys.stderr.flush()
            _open_line = None
        self._drawn = self._done

    def _draw(self) -> None:
        global _open_line
        self._drawn = self._done
        if not self._terminal:
            say(", ".join(filter(None, (f"{self._doing} {self._count()}", self._rate(), self._left(), *self._details))))
            return
        if _open_line is not self:
            end_progress()  # of other work, whose line would be overwritten
        _open_line = self
        sys.stderr.write(f"\r\x1b[2K{self._line((width_of(sys.stderr) or 80) - _SPARE)}")
        sys.stderr.flush()

    def _count(self) -> str:
        return f"{self._done}/{self._total} {self._unit}"

    def _rate(self) -> str:
        speed = self._pace.speed() * self._size
        return f"{speed:.{0 if speed >= 10 else 1 if speed >= 1 else 2}f} {self._thing}/s" if speed else ""

    def _left(self) -> str:
        speed = self._pace.speed()
        return f"{duration((self._total - self._done) / speed)} left" if speed and self._done < self._total else ""

    def _line(self, width: int) -> str:
        """The pieces that fit into ``width``, the important ones first; a bar takes the columns that are left."""
        count, rate, left = self._count(), self._rate(), self._left()
        room, kept = width - len(count), {count}
        for piece in (left, rate, *self._details[:1], "bar", self._doing, *self._details[1:]):
            needed = (_BAR if piece == "bar" else len(piece)) + 2
            if piece and needed <= room:
                kept.add(piece)
                room -= needed
        shown = [piece for piece in (self._doing, count, "bar", rate, left, *self._details) if piece in kept]
        bar = _bar(self._done, self._total, min(_BAR + room, 40)) if "bar" in kept else ""
        return "  ".join(bar if piece == "bar" else piece for piece in shown)[: None if bar else width]


class Pace:
    """The rate of work over its last states; the first ones, slowed by warming up, are left out."""

    WARM_UP = 2
    WINDOW = 100

    def __init__(self) -> None:
        self.marks = 0
        self._states = deque[tuple[float, int]](maxlen=self.WINDOW)

    def mark(self, done: int, now: float) -> None:
        """Note that ``done`` units are done at the time ``now``, in seconds."""
        self.marks += 1
        if self.marks > self.WARM_UP:
            self._states.append((now, done))

    def speed(self) -> float:
        """Units a second; 0 where too little is known."""
        if len(self._states) < 2:
            return 0.0
        (began, first), (now, last) = self._states[0], self._states[-1]
        return (last - first) / (now - began) if now > began else 0.0


def _bar(done: int, total: int, width: int) -> str:
    from rich.console import Console
    from rich.progress_bar import ProgressBar

    console = Console(stderr=True)
    with console.capture() as captured:
        console.print(ProgressBar(total, done, width), end="")
    return captured.get()


def duration(seconds: float) -> str:
    """A span for people: ``45s``, ``12m``, ``3h05m``."""
    if round(seconds) < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
