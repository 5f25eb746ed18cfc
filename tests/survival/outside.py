"""Rows 19 and 20: long lists of files, and no network."""

import csv
import io
import json
import random
import shutil
import signal
from pathlib import Path

from tests.survival.children import wait_for
from tests.survival.harness import (
    Bench,
    Figure,
    Tier,
    write_pictures,
)


def interrupted_lists(bench: Bench, tier: Tier) -> Figure:
    """Row 19: caption and eval of many files, killed at random and started again until they end."""
    count, kills = (24, 1) if tier == "fast" else (200, 8)
    folder = bench.fresh("many").parent
    write_pictures(folder / "pictures", count)
    names = sorted(str(path) for path in (folder / "pictures").glob("*.png"))
    failures, dice, killed = [], random.Random(0), 0
    for form in ("jsonl",) if tier == "fast" else ("jsonl", "csv", "text"):
        out = folder / f"captions.{form}"
        words = ["caption", folder / "pictures", "--checkpoint", bench.whole(), "--format", form, "--out", out]
        for number in range(kills):
            child = bench.zygote.command(words)
            goal = (number + 1) * count // (kills + 2) + dice.randrange(5)
            wait_for(
                lambda child=child, out=out, goal=goal: _lines(out) >= goal or child.poll() is not None, 90, "rows"
            )  # type: ignore[misc]
            child.send(signal.SIGKILL if number % 3 else signal.SIGTERM)
            killed += child.wait().code in (-signal.SIGKILL, 75)
        trial = bench.zygote.command(words).wait()
        found = sorted(_files_in(out, form))
        if trial.code or found != names:
            failures.append(
                f"caption {form}: exit {trial.code}, {len(found)} rows, {len(set(found))} files: {trial.err[-200:]}"
            )
    rows = folder / "rows.jsonl"
    words = ["eval", "--checkpoint", bench.whole(), "--data", folder / "pictures", "--split", "all", "--out", rows]
    for _ in range(kills):
        child = bench.zygote.command(words)
        wait_for(lambda: child.poll() is not None or dice.random() < 0.01, 90, "a moment")  # noqa: B023
        child.send(signal.SIGKILL)
        killed += child.wait().code == -signal.SIGKILL
        if rows.exists() and _lines(rows) != count:
            failures.append("eval left a part of its rows")
    trial = bench.zygote.command(words).wait()
    if trial.code or sorted(json.loads(line)["id"] for line in rows.read_text().splitlines()) != [
        Path(n).name for n in names
    ]:
        failures.append(f"eval: exit {trial.code}: {trial.err[-300:]}")
    figure = f"{count} files, {killed} interruptions, {len(failures)} lists with a file twice or missing"
    return Figure(19, "caption and eval interrupted", figure, "none twice, none missed", not failures, failures)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _files_in(out: Path, form: str) -> list[str]:
    text = out.read_text()
    if form == "jsonl":
        return [json.loads(line)["file"] for line in text.splitlines()]
    if form == "csv":
        return [row["file"] for row in csv.DictReader(io.StringIO(text))]
    return [line.split("\t")[0] for line in text.splitlines()]


def no_network(bench: Bench, tier: Tier) -> Figure:
    """Row 20: every command without a network, attempts counted in each process and by the kernel."""
    folder = bench.fresh("offline").parent
    (folder / "site").mkdir()
    run, tuned = folder / "run", folder / "tuned"
    phantoms = ("data.dataset=phantoms", "data.phantoms=24", "data.path=", "data.augment=radiology")
    folder_flags = ["--dataset", "folder", "--data", bench.pictures, "--set", "data.split=all", "--device", "cpu"]
    small = [part for name in ("steps=3", "batch_size=8", "warmup_steps=1") for part in ("--set", f"training.{name}")]
    commands: dict[str, list[object]] = {
        "pretrain": bench.pretrain(run, f"data.workers={0 if tier == 'fast' else 2}", "training.steps=3"),
        "pretrain on phantoms": bench.pretrain(run.with_name("drawn"), *phantoms, "training.steps=3"),
        "finetune": ["finetune", "--checkpoint", run, "--out", tuned, *folder_flags, *small],
        "caption": ["caption", bench.pictures, "--checkpoint", tuned],
        "eval": [
            "eval",
            "--checkpoint",
            tuned,
            "--data",
            bench.pictures,
            "--split",
            "all",
            "--report",
            folder / "r.html",
        ],
        "info": ["info", tuned],
        "doctor": ["doctor"],
        "ls": ["ls", "models"],
    }
    failures, attempts = [], 0
    for number, (name, words) in enumerate(commands.items()):
        if tier == "fast" and name not in ("pretrain", "caption"):
            continue
        words = [run if tier == "fast" and word == tuned else word for word in words]
        report = folder / f"attempts-{number}"
        trial = bench.zygote.command(
            words, ("no_network", {"report": str(report), "site": str(folder / "site")})
        ).wait()
        tried = report.read_text().splitlines() if report.exists() else []
        attempts += len(tried)
        if trial.code or tried:
            failures.append(f"{name}: exit {trial.code}, {tried[:3]}: {trial.err[-300:]}")
    seen = 0
    for native in (False, True):
        report = folder / f"control-{native}"
        arguments = {"report": str(report), "site": str(folder / "site")}
        bench.zygote.command(["--version"], ("no_network", arguments), ("call_home", {"native": native})).wait()
        seen += report.exists()
    if not seen:
        failures.append("a connection that was tried on purpose was not counted")
    shutil.rmtree(folder / "site")
    figure = f"{attempts} attempts; of 2 made on purpose, one past Python, {seen} seen"
    return Figure(20, "network blocked", figure, "all works, 0 attempts", not failures, failures)
