"""Rows 9, 13, 15 and 18: bad data, numbers that are none, no memory, a logger that fails."""

import json

from grrcoca_cli.training.checkpoint import find_checkpoint, load_checkpoint
from tests.survival.harness import (
    Bench,
    Figure,
    Tier,
    difference,
    pairs,
    rows_of,
    told_in_one_line,
)


def bad_samples(bench: Bench, tier: Tier) -> Figure:
    """Row 9: pictures cut short or none at all, below and above the share that is borne."""
    failures, ends = [], []
    settings = (
        *("training.steps=40", "training.batch_size=32", "training.save_every=0", "training.eval_every=0"),
        *("data.dataset=folder", "data.split=all"),
    )
    for count, wanted in ((1, 0), (6, 4)) if tier == "full" else ((6, 4),):
        folder = bench.fresh("bad").parent / "pictures"
        folder.mkdir()
        for number, (name, picture, caption) in enumerate(pairs(48)):
            damaged = {0: picture[:-400], 1: b"no picture"}[number % 2] if number < count else picture
            (folder / f"{name}.png").write_bytes(damaged)
            (folder / f"{name}.txt").write_text(caption)
        out = folder.with_name("run")
        words = [str(folder) if word == str(bench.pictures) else word for word in bench.pretrain(out, *settings)]
        trial = bench.zygote.command([*words, "--set", "data.validation_fraction=0"]).wait()
        ends.append(f"{count} of 48 bad: exit {trial.code}")
        warnings = trial.err.count("warning: unreadable sample")
        if trial.code != wanted or warnings > 2:
            failures.append(f"{count} bad: exit {trial.code}, {warnings} warnings: {trial.err[-300:]}")
        elif wanted and not (told_in_one_line(trial) and len(rows_of(out)) == 31):
            failures.append(f"{count} bad: stopped after {len(rows_of(out))} rows: {trial.err[-300:]}")
        elif not wanted:
            state = json.loads((find_checkpoint(out) / "training" / "state.json").read_text())
            if sum(state["bad_samples"].values()) < 20:
                failures.append(f"counted: {state['bad_samples']}")
    return Figure(
        9, "bad-sample share", "; ".join(ends), "exit 4 above 5 % after 1,000 samples", not failures, failures
    )


def not_finite(bench: Bench, tier: Tier) -> Figure:
    """Row 13: one micro-batch gives NaN; the run ends before that step, and goes on from the last good checkpoint."""
    failures = []
    steps = (1, 6, 9) if tier == "full" else (6,)
    for step in steps:
        for half in (0, 1):
            out = bench.fresh("nan")
            trial = bench.zygote.command(bench.pretrain(out), ("not_finite", {"count": 2 * step - 1 + half})).wait()
            logged = max(row["step"] for row in rows_of(out))
            if trial.code != 6 or logged != step - 1 or not told_in_one_line(trial):
                failures.append(f"step {step}: exit {trial.code}, logged {logged}: {trial.err[-300:]}")
            if step > 4 and not all(
                t.isfinite().all() for t in load_checkpoint(find_checkpoint(out)).model.parameters()
            ):
                failures.append(f"step {step}: the checkpoint is not finite")
            if bench.zygote.command(bench.pretrain(out)).wait().code or difference(bench.whole(), out):
                failures.append(f"step {step}: going on differs")
    figure = f"{2 * len(steps)} NaN micro-batches, {len(failures)} wrong ends"
    return Figure(13, "NaN or infinite loss", figure, "exit 6 before the step, last good kept", not failures, failures)


def no_memory(bench: Bench, tier: Tier) -> Figure:
    """Row 15: an address space that the model fits into and a step of it does not."""
    failures = []
    out = bench.fresh("memory")
    large = ("model.image_size=512", "model.image_width=128", "training.batch_size=32", "training.accumulation=1")
    words = bench.pretrain(out, *large, "training.eval_every=0", "data.in_memory=true", "training.warmup_steps=0")
    trial = bench.zygote.command(words, ("little_memory", {"megabytes": 900})).wait()
    named = [
        word
        for word in ("32 pictures", "512 px", "batch", "accumulation", "gradient_checkpointing")
        if word in trial.err
    ]
    steps = [row for row in rows_of(out) if "loss" in row] if (out / "metrics.jsonl").exists() else []
    if trial.code != 5 or len(named) < 5 or steps or not told_in_one_line(trial):
        failures.append(f"exit {trial.code}, {len(steps)} steps, named {named}: {trial.err[-400:]}")
    figure = f"exit {trial.code} before step 1, {len(named)} of batch, size and three ways out named"
    return Figure(15, "out of memory", figure, "exit 5 before step 1, three ways out", not failures, failures)


def failing_logger(bench: Bench, tier: Tier) -> Figure:
    """Row 18: a logger whose disk is full from its third number on."""
    failures = []
    out = bench.fresh("logger")
    settings = ('training.loggers=["tensorboard"]',)
    trial = bench.zygote.command(bench.pretrain(out, *settings), ("broken_logger", {})).wait()
    warnings = trial.err.count("warning: logging to tensorboard failed")
    if trial.code or warnings != 1:
        failures.append(f"exit {trial.code}, {warnings} warnings: {trial.err[-300:]}")
    elif wrong := difference(bench.whole(), out):
        failures.append(wrong)
    figure = f"exit {trial.code}, {warnings} warning, log and weights {'differ' if failures else 'identical'}"
    return Figure(18, "a logger that fails", figure, "training goes on, loss identical", not failures, failures)
