"""Rows 1 and 2: what is on the disk, whatever happens while it is written."""

import errno
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch

from grrcoca_cli import __version__
from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import GrrcocaError
from grrcoca_cli.files import lock_folder, remove_folder
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.checkpoint import (
    FORMAT_VERSION,
    CheckpointConfig,
    ImageContract,
    checkpoints_of,
    load_checkpoint,
    save_checkpoint,
)
from tests.survival.children import Trial, wait_for
from tests.survival.disk_faults import DiskFaults
from tests.survival.harness import (
    Bench,
    Figure,
    Tier,
    difference,
    halves,
    is_sound,
    told_in_one_line,
)

ERRNOS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS)
CODES = {errno.ENOSPC: 5, errno.EACCES: 2, errno.EIO: 2, errno.EROFS: 2}


def save_for_ever(out: str, megabytes: int) -> None:
    """Save one checkpoint after another as a run does, each with ``megabytes`` of weights; say which are done."""
    model, tokenizer, config = small_checkpoint(megabytes)
    optimizer = torch.optim.AdamW(model.parameters())
    step = int(checkpoints_of(Path(out))[0].name[5:]) if checkpoints_of(Path(out)) else 0

    with lock_folder(Path(out)), (Path(out) / "done").open("a") as done:
        while True:
            step += 1
            with torch.no_grad():
                model.logit_scale.fill_(step / 1000)
            target = Path(out) / "checkpoints" / f"step-{step}"
            save_checkpoint(
                target, model, tokenizer, config.model_copy(update={"step": step}), [optimizer], {"step": step}
            )
            done.write(f"{step}\n")
            done.flush()
            for folder in checkpoints_of(Path(out))[2:]:
                remove_folder(folder)


def small_checkpoint(megabytes: float = 0) -> tuple[Any, Any, Any]:
    """A model, its tokenizer and its configuration; with ``megabytes``, a model of about that size."""
    tokenizer = CaptionTokenizer.train(["a caption"], 300)
    layers = max(1, round(megabytes / 0.45))
    tables = {"size": "tiny", "image_size": 32, "image_layers": layers, "vocab_size": tokenizer.vocab_size}
    model_config = ModelConfig.model_validate(tables)
    config = CheckpointConfig(
        format_version=FORMAT_VERSION,
        grrcoca_version=__version__,
        model=model_config,
        image=ImageContract(size=32, fit="letterbox", mean=(0.5,) * 3, std=(0.5,) * 3, window="auto"),
        generation=GenerationConfig(),
        step=0,
        trained_on="nothing",
    )
    return CoCa(model_config), tokenizer, config


def killed_while_saving(bench: Bench, tier: Tier) -> Figure:
    """Row 1: kill -9 at a random moment of saves in a tight loop, of a checkpoint of some megabytes."""
    trials = 30 if tier == "fast" else 200
    out, dice, failures, halved = bench.fresh("killed"), random.Random(0), [], 0
    for trial in range(trials):
        before = _done(out)
        child = bench.zygote.start("saving:save_for_ever", out=str(out), megabytes=2)
        wait_for(lambda before=before: _done(out) > before, 60, "a save")  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.15))
        child.send(signal.SIGKILL)
        child.wait()
        halved += bool(halves(out))
        broken = [folder.name for folder in checkpoints_of(out) if not is_sound(folder)]
        newest = next(int(folder.name[5:]) for folder in checkpoints_of(out) if is_sound(folder))
        if broken or newest < _done(out):
            failures.append(f"trial {trial}: {broken} unreadable, newest {newest} of {_done(out)}")
    loaded = load_checkpoint(checkpoints_of(out)[0])
    if abs(loaded.model.logit_scale.item() - loaded.config.step / 1000) > 1e-6:
        failures.append("the newest checkpoint holds other weights than its step's")
    figure = f"{trials} kills ({halved} in the midst of a save), {len(failures)} unreadable or behind"
    if trials > 20 and not halved:
        failures.append("no kill met a save")
    return Figure(1, "kill -9 while saving", figure, "0 unreadable, only the save begun lost", not failures, failures)


def _done(out: Path) -> int:
    lines = (out / "done").read_text().splitlines() if (out / "done").exists() else []
    return int(lines[-1]) if lines else 0


def faults_while_saving(bench: Bench, tier: Tier) -> Figure:
    """Row 2: each call of a save fails once, of a new checkpoint and of one that replaces another."""
    out = bench.fresh("faults")
    report = out.parent / "report.json"
    out.mkdir()
    child = bench.zygote.start("saving:try_every_call", out=str(out), tier=tier, report=str(report))
    trial = child.wait(600)
    assert trial.code == 0, trial.err
    trials, failures = json.loads(report.read_text())
    figure = f"{trials} faults, {len(failures)} without old checkpoint, code and clean folder"
    return Figure(
        2, "a fault at each system call of a save", figure, "the old checkpoint loads", not failures, failures
    )


def try_every_call(out: str, tier: Tier, report: str) -> None:
    """In a child, whose calls are counted and fail: save, and see after each save what is there."""
    model, tokenizer, config = small_checkpoint()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    run, faults, failures, trials = Path(out), DiskFaults(Path(out), 0, 0), [], 0

    def save(step: int) -> tuple[int, str]:
        target = run / "checkpoints" / f"step-{step}"
        try:
            save_checkpoint(target, model, tokenizer, config, [optimizer], {"step": step})
        except GrrcocaError as error:
            return int(error.exit_code), str(error)
        except Exception as error:
            return 1, repr(error)
        return 0, ""

    faults.install()
    save(1)
    for step in (2, 1):  # a new folder, and one that is there
        faults.rearm(0)
        save(step)
        calls = faults.count
        assert calls > 50, "too few calls were counted"
        for at in range(1, calls + 1, 1 if tier == "full" else 3):
            for code in ERRNOS if tier == "full" else (ERRNOS[at // 3 % len(ERRNOS)],):
                faults.rearm(0)
                shutil.rmtree(run / "checkpoints" / "step-2", ignore_errors=True)
                faults.rearm(at, code)
                ended, message = save(step)
                what = faults.failed
                faults.rearm(0)
                trials += 1
                if wrong := _wrong(run, ended, message, code):
                    failures.append(f"step-{step}, call {at} ({what}), {errno.errorcode[code]}: {wrong}")
    Path(report).write_text(json.dumps([trials, failures]))


def _wrong(out: Path, ended: int, message: str, code: int) -> str:
    swallowed = ended == 0  # in the removal of what was replaced, which may fail
    left = [name for name in halves(out) if not (swallowed and name.endswith(".old.partial"))]
    for name in halves(out):
        shutil.rmtree(out / name)
    if not is_sound(out / "checkpoints" / "step-1"):
        return "the old checkpoint is damaged"
    if any(not is_sound(folder) for folder in checkpoints_of(out)):
        return "a damaged checkpoint is in place"
    if left:
        return f"left behind: {left}"
    if not swallowed and (ended != CODES[code] or "\n" in message):
        return f"ended with {ended}: {message}"
    return ""


def faults_in_a_run(bench: Bench, tier: Tier) -> Figure:
    """Row 2 over a whole run: any call on its folder fails, and the same command goes on afterwards."""
    whole, failures = bench.whole(), []
    report = bench.fresh("report").with_suffix(".json")
    calls = _run_with_fault(bench, whole.with_name("counted"), 0, 0, report)[0]
    numbers = range(1, calls + 1, 7 if tier == "full" else max(1, calls // 2))
    for number in numbers:
        code = ERRNOS[number % len(ERRNOS)]
        out = bench.fresh("faulty")
        _, what, trial = _run_with_fault(bench, out, number, code, report)
        where = f"call {number} ({what}), {errno.errorcode[code]}"
        if trial.code not in (0, CODES[code]) or (trial.code and not told_in_one_line(trial)):
            failures.append(f"{where}: exit {trial.code}: {trial.err[-300:]}")
        again = bench.zygote.command(bench.pretrain(out)).wait()
        if again.code:
            failures.append(f"{where}: started again: exit {again.code}: {again.err[-300:]}")
        elif wrong := difference(whole, out) or (f"left behind: {halves(out)}" if halves(out) else ""):
            failures.append(f"{where}: started again: {wrong}")
        shutil.rmtree(out.parent)
    figure = f"{len(numbers)} of {calls} calls failed once, {len(failures)} wrong ends or restarts"
    return Figure(
        2, "the same, anywhere in a run", figure, "told in one line, goes on bit for bit", not failures, failures
    )


def _run_with_fault(bench: Bench, out: Path, at: int, code: int, report: Path) -> tuple[int, str, Trial]:
    fault = ("disk_fault", {"folder": str(out), "at": at, "code": code, "report": str(report)})
    trial = bench.zygote.command(bench.pretrain(out), fault).wait()
    count, what = json.loads(report.read_text())
    return count, what, trial
