"""How a benchmark's two sides are run in turn: each is a process of its own that works whenever it is asked to.

A worker is started with one JSON object on its command line. It answers ``{"parameters": ..., "flops": ...}`` once it
is ready, then one ``{"seconds": ..., "cpu_seconds": ..., "peak_gb": ...}`` for every line it reads; with
``without_products`` in its settings, seconds are those that `peer_rest` counts. Standard library and torch alone, so
that either environment can load it; the peer's does not hold this project.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Work = Callable[[], object]


def facts(model: Any, forward_backward: Work | None = None, settings: dict[str, Any] | None = None) -> Answer:
    """Parameters and, where asked for, floating-point operations of a training step's products."""
    from torch.utils.flop_counter import FlopCounterMode  # torch is there in a worker alone

    found: Answer = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if forward_backward is not None and settings and settings.get("count_flops"):
        with FlopCounterMode(display=False) as counter:
            forward_backward()
        found["flops"] = counter.get_total_flops()
    return found


def serve(prepare: Callable[[dict[str, Any]], tuple[Work, Answer]]) -> None:
    """Be a worker: ``prepare`` makes the work of the command line's settings and says what is known before it runs."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    settings = json.loads(sys.argv[1])
    work, facts = prepare(settings)
    seconds_of = _outside_products if settings.get("without_products") else _wall_time
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        worked = time.process_time()
        seconds = seconds_of(work)
        cpu = time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak / 1e9}), file=answers, flush=True)


def _wall_time(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _outside_products(work: Work) -> float:
    from peer_rest import WithoutProducts  # torch is there in a worker alone

    with WithoutProducts() as mode:
        work()
    return mode.seconds


class Side:
    """A worker process of one side.

    Attributes:
        facts: What it said of itself when it was ready.
    """

    def __init__(self, python: Path, script: Path, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, "-W", "ignore", script, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._what = f"{script.name} {settings}"
        self.facts = self._answer()

    def run(self) -> Answer:
        """Let it work once; seconds and its peak resident memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._what} ended with {self._process.wait()}")
        found: Answer = json.loads(line)
        return found
