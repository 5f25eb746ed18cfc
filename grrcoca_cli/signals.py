"""SIGINT and SIGTERM as a request to stop at the next safe point."""

import signal
import time
from types import FrameType
from typing import Self

PATIENCE = 1.0
"""Seconds in which a second SIGINT counts as the same one: a launcher passes on what the whole group was sent."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM sets a flag; a later SIGINT, a person's second, interrupts at once.

    SIGTERM never interrupts: schedulers and launchers repeat it, and what it asks for is to save.

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
            self.signal = signal.Signals(number)
            self._since = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > PATIENCE:
            raise KeyboardInterrupt
