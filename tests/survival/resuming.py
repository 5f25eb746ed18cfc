"""Rows 4 and 6: runs that are stopped anywhere and go on as if they had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from tests.survival.children import ROOT, Child, Fault, members, wait_for
from tests.survival.harness import (
    Bench,
    Figure,
    Tier,
    difference,
    halves,
    rows_of,
    steps_of,
)

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
Cut = tuple[str, int, int]
"""A place of `faults.signal_at`, how often it is passed before, and the signal."""

# Nine steps of two micro-batches, four steps an epoch; rows of the log: an evaluation, five steps, another, four steps.
CUTS: tuple[tuple[str, tuple[Cut, ...]], ...] = (
    ("mid-epoch", (("log", 3, TERM),)),
    ("at the epoch's edge", (("log", 5, TERM),)),
    ("first step after the edge", (("log", 6, INT),)),
    ("second edge", (("log", 10, TERM),)),
    ("mid-accumulation", (("forward", 5, TERM),)),
    ("between micro-batches of the edge's step", (("forward", 8, TERM),)),
    ("before the first step", (("log", 1, TERM),)),
    ("in the last step", (("forward", 18, TERM),)),
    ("in a save", (("save", 3, TERM),)),
    ("in an evaluation", (("evaluation", 3, TERM),)),
    ("three in a row", (("log", 3, TERM), ("forward", 3, INT), ("log", 3, TERM))),
    ("three steps, one each", (("forward", 1, TERM), ("forward", 1, TERM), ("forward", 1, TERM))),
    ("kill -9 in a step", (("forward", 13, KILL),)),
    ("kill -9 in a save", (("save", 2, KILL),)),
    ("kill -9 before the first save", (("log", 4, KILL),)),
    ("kill -9 at the log's end", (("log", 11, KILL),)),
    ("kill -9 thrice", (("forward", 9, KILL), ("save", 4, KILL), ("forward", 2, KILL))),
    ("stopped, then killed", (("log", 3, TERM), ("save", 1, KILL))),
)
FAST = ("mid-accumulation", "three in a row", "kill -9 thrice")
VARIANTS: tuple[tuple[str, ...], ...] = (
    ("data.workers=2",),
    ("training.optimizer=muon",),
    ("data.dataset=folder", "data.split=all"),
    ("data.dataset=folder", "data.split=all", "data.workers=2"),
)
VARIED = ("at the epoch's edge", "mid-accumulation", "three in a row", "kill -9 in a step")


def exact_resume(bench: Bench, tier: Tier) -> Figure:
    """Row 4: cut, started again, and compared with the run that was not."""
    cases = [((), name, cuts) for name, cuts in CUTS if tier == "full" or name in FAST]
    if tier == "full":
        cases += [(settings, name, cuts) for settings in VARIANTS for name, cuts in CUTS if name in VARIED]
    failures = []
    for settings, name, cuts in cases:
        out = bench.fresh("cut")
        if wrong := _cut_and_go_on(bench, out, settings, cuts):
            failures.append(f"{name} {' '.join(settings)}: {wrong}")
        shutil.rmtree(out.parent)
    cut = sum(len(cuts) for _, _, cuts in cases)
    figure = f"{cut} cuts in {len(cases)} runs, {len(failures)} differ"
    return Figure(4, "exact resume on a CPU", figure, "weights and log bit-identical", not failures, failures)


def _cut_and_go_on(bench: Bench, out: Path, settings: tuple[str, ...], cuts: Sequence[Cut]) -> str:
    words = bench.pretrain(out, *settings)
    for place, count, number in cuts:
        trial = bench.zygote.command(words, ("signal_at", {"place": place, "count": count, "numbers": [number]})).wait()
        if trial.code != (-KILL if number == KILL else 75):
            return f"the cut at {place} {count} ended with {trial.code}: {trial.err[-300:]}"
    trial = bench.zygote.command(words).wait()
    if trial.code:
        return f"going on ended with {trial.code}: {trial.err[-300:]}"
    return difference(bench.whole(*settings), out) or (f"left behind: {halves(out)}" if halves(out) else "")


def signals_anywhere(bench: Bench, tier: Tier) -> Figure:
    """Row 6: SIGTERM and SIGINT, to the process or its whole group, in everything a run does once it trains."""
    cases: list[tuple[str, tuple[str, ...], list[Fault], Callable[[Child, Path], None] | None]] = []
    inside = (("warm-up", "log", 3), ("step", "forward", 13), ("evaluation", "evaluation", 3), ("save", "save", 4))
    for name, place, count in inside:
        for numbers in ([TERM], [INT], [TERM, TERM, INT]):
            fault: Fault = ("signal_at", {"place": place, "count": count, "numbers": numbers})
            cases.append((f"{name} {[signal.Signals(number).name for number in numbers]}", (), [fault], None))
    slow: Fault = ("slow_data", {"seconds": 0.05})
    for workers, data in product(("data.workers=0", "data.workers=2"), ("data.dataset=shards", "data.dataset=folder")):
        for number, group in product((TERM, INT), (False, True)):
            name = f"data wait, {workers}, {data}, {signal.Signals(number).name}{', group' if group else ''}"
            split = "data.split=all" if "folder" in data else "data.split=train"
            cases.append((name, (workers, data, split), [slow], _sender(number, group=group)))
    if tier == "fast":
        cases = [*cases[1:12:3], cases[2], next(case for case in cases if "folder" in case[0])]
    failures, orphans = [], 0
    for name, settings, faults, send in cases:
        out = bench.fresh("stopped")
        child = bench.zygote.command(bench.pretrain(out, *settings), *faults)
        if send is not None:
            send(child, out)
        trial = child.wait(90)
        left = _left_after(lambda child=child: child.relatives())  # type: ignore[misc]
        orphans += bool(left)
        if wrong := _stopped_wrongly(out, trial.code) or (f"orphans {left}" if left else ""):
            failures.append(f"{name}: {wrong}: {trial.err[-300:]}")
        shutil.rmtree(out.parent)
    figure = f"{len(cases)} stops, {len(failures)} not saved, {orphans} with orphans"
    target = "exit 75, saved, no orphans after 5 s"
    return Figure(6, "SIGTERM, SIGINT in step, eval, save, wait", figure, target, not failures, failures)


def _sender(number: int, *, group: bool) -> Callable[[Child, Path], None]:
    def send(child: Child, out: Path) -> None:
        wait_for(lambda: steps_of(out) >= 3 or child.poll() is not None, 90, "two steps")
        time.sleep(0.1)
        child.send(number, group=group)

    return send


def _left_after(find: Callable[[], list[int]], seconds: float = 5) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _stopped_wrongly(out: Path, code: int) -> str:
    if code != 75:
        return f"exit {code}"
    status = json.loads((out / "status.json").read_text())
    if (status["state"], status["exit_code"]) != ("stopped", 75):
        return f"status.json says {status}"
    saved = max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=-1)
    logged = max(row["step"] for row in rows_of(out))
    return "" if saved == logged else f"saved at {saved}, logged {logged}"


def signals_at_the_start(bench: Bench, tier: Tier) -> Figure:
    """Row 6: the same while the interpreter loads, pictures are drawn and the tokenizer is trained; nothing to lose."""
    delays = [random.Random(0).uniform(0.05, 6) for _ in range(24)] if tier == "full" else [2.0]
    failures, codes = [], set()
    recipe = bench.folder / "drawn.toml"
    recipe.write_text(bench.recipe.read_text().replace('dataset = "shards"', 'dataset = "phantoms"\nphantoms = 24'))
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for number, delay in enumerate(delays):
        out = bench.fresh("begun")
        words = ["pretrain", "--recipe", recipe, "--out", out, "--device", "cpu", "--set", "training.steps=5000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "grrcoca_cli", *map(str, words)],
            env={**os.environ, **threads},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        time.sleep(delay)
        process.send_signal((TERM, INT)[number % 2])
        _, err = process.communicate(timeout=60)
        codes.add(process.returncode)
        wanted = (75,) if (out / "status.json").exists() else (75, 130, -TERM, -INT)
        left = _left_after(lambda process=process: members(process.pid))  # type: ignore[misc]
        ended = bench.zygote.command(words, ("signal_at", {"place": "log", "count": 3, "numbers": [TERM]})).wait()
        if process.returncode not in wanted or left or ended.code != 75:
            ends = f"exit {process.returncode}, left {left}, then {ended.code}"
            failures.append(f"after {delay:.2f} s: {ends}: {err[-200:]} {ended.err[-200:]}")
    figure = f"{len(delays)} stops, exits {', '.join(map(str, sorted(codes)))}, {len(failures)} wrong"
    return Figure(
        6, "the same while a run starts", figure, "no orphans, the same command goes on", not failures, failures
    )
