"""SIGINT and SIGTERM as a request to stop at the next safe point."""

import signal
import time
from types import FrameType
from typing import Self

_ONE_KEYSTROKE = 1.0  # seconds


class StopRequest:
    """While active, the first SIGINT or SIGTERM sets a flag; a later SIGINT interrupts at once.

    Only one that comes a second later: a launcher and a terminal may both pass on what was one keystroke.

    Used as a context manager in the main thread; the former handlers come back at its end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _ONE_KEYSTROKE:
            raise KeyboardInterrupt
