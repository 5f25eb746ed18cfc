"""Our side of a guarded process: its start, its answers, and what it died of.

It is a fresh interpreter: no fork, so that it holds no locks of ours and no torch, and no ``__main__``, so that a
user's script is not run again. It writes to no terminal, leaves no core file (which would hold the file it died of),
and ends with the process that it serves, also where that one is killed. It reads what anybody may have written, so its
answers are unpickled from an allow-list of classes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from errno import ENOMEM
from typing import Any, NamedTuple

from grrcoca_cli.errors import GrrcocaError, OutOfResources, UnreadableImage
from medical.guard_channel import load_allowed, pack, receive, send
from medical.guard_worker import Limits

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medical.guard_worker import serve; serve()"
_NOT_ASKED = object()
"""Of an item whose process died of the one before it."""


class Process:
    """A process that applies one function to one item at a time; started with the first, and anew after each death.

    Threads may call it together: the next item is sent while it is busy with the one before, so that it never waits
    for us between two.

    Args:
        function: What it does; see `medical.guard.guarded_map`.
        limits: What one item may cost.
    """

    def __init__(self, function: Callable[[Any], object], limits: Limits) -> None:
        self._function = function
        self._limits = limits
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._gate = threading.Lock()  # between starting and stopping
        self._stopped = False
        self._life: _Life | None = None

    def __call__(self, item: object) -> object:
        """What the function returned, or an `UnreadableImage`.

        Raises:
            GrrcocaError: The function raised one that is no `UnreadableImage`.
            OutOfResources: The process does not start.
            TypeError: It cannot import the function.
        """
        request = pack(item)
        answer = self._ask(request)
        if isinstance(answer, _Death) and answer.may_be_anothers:
            answer = self._ask(request)  # the blame is for an item that kills a fresh process, or a second one
        if isinstance(answer, _Death):
            return answer.named
        if isinstance(answer, GrrcocaError) and not isinstance(answer, UnreadableImage):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, whatever it is doing; there will be no other."""
        with self._gate:
            self._stopped = True
            if life := self._life:  # once: a thread that finds it dead takes it away
                life.kill()

    def __del__(self) -> None:
        self.stop()

    def _ask(self, request: list[memoryview]) -> object:
        try:
            while True:
                if (answer := self._exchange(request)) is not _NOT_ASKED:
                    return answer
        except BaseException:  # Ctrl-C, perhaps with an answer on its way that would be taken for the next item's
            if life := self._life:
                life.kill()
            raise

    def _exchange(self, request: list[memoryview]) -> object:
        with self._sending:
            life = self._life or self._start()
            life.send(request)
            self._receiving.acquire()  # before the next one sends: answers come in the order of requests
        try:
            return _NOT_ASKED if life.is_over else life.receive()
        finally:
            if life.is_over and self._life is life:
                self._life = None
            self._receiving.release()

    def _start(self) -> "_Life":
        with self._gate:
            if self._stopped:
                raise RuntimeError("a process was asked after it was stopped")
            try:
                life = self._life = _Life(self._limits)
            except OSError as error:
                raise OutOfResources(f"a reading process does not start: {error.strerror}") from error
        life.send(pack((self._function, self._limits)))
        problem = life.receive()
        if problem:
            self._life = None
            if isinstance(problem, _Death):
                what = str(problem.named).partition(": ")[2]
                raise OutOfResources(f"a reading process does not start: {what}")
            raise TypeError(f"a worker process needs a function that it can import: {problem}")
        life.has_served = False
        return life


class _Death(NamedTuple):
    """What a process died of, and whether an earlier item may have brought it about: a damaged heap, leaked memory."""

    named: UnreadableImage
    may_be_anothers: bool


class _Life:
    """One process of the operating system, from start to death, and our end of what we say to each other."""

    _process: subprocess.Popen[bytes] | None = None
    _ends: tuple[socket.socket, ...] = ()

    def __init__(self, limits: Limits) -> None:
        self.is_over = False
        self.has_served = False
        self._limits = limits
        self._owner = os.getpid()  # a forked copy of this object owns nothing
        self._channel, theirs = socket.socketpair()
        presence, watched = socket.socketpair()  # says nothing; that it closes tells that we are gone
        self._ends = (self._channel, presence)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # there are several processes already
        with theirs, watched:
            self._process = subprocess.Popen(
                # -P: no module comes from the current folder unless we take it from there
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=theirs.fileno(),
                stdout=watched.fileno(),
                stderr=subprocess.DEVNULL,
                env=os.environ | one_thread,
                process_group=0,  # Ctrl-C is for us alone
            )

    def send(self, request: list[memoryview]) -> None:
        """Send one item; if the process has died, `receive` tells."""
        with suppress(OSError):
            send(self._channel, request)

    def receive(self) -> object:
        """The answer to the oldest item that has none; the process's end is one too."""
        try:
            parts = receive(self._channel, self._limits.memory_mb << 20)
        except (EOFError, OSError):
            return _Death(*self._end())
        try:
            answer = load_allowed(parts)
        except Exception:  # whatever unpickling hits in an answer that no sound process gives
            self.kill()
            refusal = UnreadableImage("crashed the decoder", "its answer is nothing that may come out of a process")
            return _Death(refusal, self.has_served)
        self.has_served = True
        return answer

    def kill(self) -> None:
        """End the process."""
        self.is_over = True
        if self._process and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        self.kill()
        for end in self._ends:
            end.close()

    def _end(self) -> tuple[UnreadableImage, bool]:
        """What the process died of, and whether that may be an earlier item's doing."""
        assert self._process is not None
        self.is_over = True
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:  # it has closed its end, and lives
            self.kill()
            return UnreadableImage("crashed the decoder", "it stopped answering"), self.has_served
        if status == -signal.SIGALRM:
            return UnreadableImage("too slow", f"more than {self._limits.seconds:g} s"), False
        if status == ENOMEM:
            reason = UnreadableImage("too large", f"more than {self._limits.memory_mb:,} MB of memory")
        elif status == -signal.SIGKILL:
            reason = UnreadableImage("too large", "ended by the system, most likely for want of memory")
        else:
            how = signal.Signals(-status).name if status < 0 else f"exit {status}"
            reason = UnreadableImage("crashed the decoder", how)
        return reason, self.has_served
