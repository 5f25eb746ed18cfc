"""Rows 1, 2, 3, 14 and 16: what is on the disk, whatever happens while it is written."""

import errno
import io
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from grrcoca_cli import __version__
from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import CheckpointRefused, GrrcocaError
from grrcoca_cli.files import lock_folder, remove_folder
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.checkpoint import (
    FORMAT_VERSION,
    CheckpointConfig,
    ImageContract,
    checkpoints_of,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from tests.survival.faults import DiskFaults
from tests.survival.harness import Bench, Figure, Tier, Trial, copy_run, difference, halves, told_in_one_line, wait_for

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
        broken = [folder.name for folder in checkpoints_of(out) if not _sound(folder)]
        newest = next(int(folder.name[5:]) for folder in checkpoints_of(out) if _sound(folder))
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


def _sound(folder: Path) -> bool:
    try:
        verify_checkpoint(folder)
    except CheckpointRefused:
        return False
    return True


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
    if not _sound(out / "checkpoints" / "step-1"):
        return "the old checkpoint is damaged"
    if any(not _sound(folder) for folder in checkpoints_of(out)):
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


def damaged_newest(bench: Bench, tier: Tier) -> Figure:
    """Row 3: every kind of damage to the newest checkpoint; the one before is used, and that is said."""
    whole, failures = bench.whole(), []
    damages = list(_damages())
    for number, (name, damage) in enumerate(damages):
        out = copy_run(whole, bench.fresh("damaged"))
        damage(checkpoints_of(out)[0])
        with redirect_stderr(io.StringIO()) as said:
            found = find_checkpoint(out).name
        if found != "step-8" or "trying the checkpoint before it" not in said.getvalue():
            failures.append(f"{name}: {found} is used, and said is {said.getvalue()!r}")
        elif tier == "full" or number % 16 == 0:
            trial = bench.zygote.command(bench.pretrain(out)).wait()
            if trial.code or "step-8" not in trial.err:
                failures.append(f"{name}: exit {trial.code}: {trial.err[-300:]}")
            elif wrong := difference(whole, out):
                failures.append(f"{name}: {wrong}")
        shutil.rmtree(out.parent)
    figure = f"{len(damages)} kinds of damage, {len(failures)} not passed over"
    return Figure(
        3, "newest checkpoint damaged", figure, "the one before is used, and it says so", not failures, failures
    )


def _damages() -> Iterator[tuple[str, Callable[[Path], object]]]:
    files = (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "training/optimizer.safetensors",
        "training/state.json",
    )

    def at(share: float, work: Callable[[bytes, int], bytes], name: str) -> Callable[[Path], object]:
        def damage(folder: Path) -> None:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(work(content, min(int(share * len(content)), len(content) - 1)))

        return damage

    def flip(content: bytes, place: int) -> bytes:
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    for name in files:
        for share in (0, 0.001, 0.5, 1):
            yield f"{name} cut at {share}", at(share, lambda content, place: content[:place], name)
            yield f"{name} flipped at {share}", at(share, flip, name)
        yield f"{name} missing", lambda folder, name=name: (folder / name).unlink()  # type: ignore[misc]
        yield f"{name} too long", at(0, lambda content, _: content + b"\0", name)
    manifests = {
        "missing": lambda folder: (folder / "MANIFEST.json").unlink(),
        "empty": lambda folder: (folder / "MANIFEST.json").write_text(""),
        "lists nothing": lambda folder: (folder / "MANIFEST.json").write_text('{"files": {}}'),
        "of another checkpoint": lambda folder: shutil.copy(folder.with_name("step-4") / "MANIFEST.json", folder),
        "nested without end": lambda folder: (folder / "MANIFEST.json").write_text("[" * 100_000),
        "is a folder": _make_folder,
    }
    for name, damage in manifests.items():
        yield f"manifest {name}", damage
    yield "training state gone", lambda folder: shutil.rmtree(folder / "training")


def _make_folder(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()
    (folder / "MANIFEST.json").mkdir()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` bytes at ``folder``, where this process may make one."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(bench: Bench, tier: Tier) -> Figure:
    """Row 14: the disk fills up after the first checkpoint, and has room again later."""
    whole, failures = bench.whole(), []
    size = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-4").rglob("*") if path.is_file())
    place = bench.fresh("disk").parent
    with small_disk(place, int(1.6 * size)) as mounted:
        out = place / "run"
        fault = ("disk_fault", {"folder": f"{out}/checkpoints/.step-8", "at": 9, "code": errno.ENOSPC})
        faults = [] if mounted else [(fault[0], {**fault[1], "report": str(bench.folder / "full.json")})]
        trial = bench.zygote.command(bench.pretrain(out), *faults).wait()
        told = all(word in trial.err for word in ("step-8", "MB needed", "MB free"))
        if trial.code != 5 or not told or not told_in_one_line(trial):
            failures.append(f"exit {trial.code}: {trial.err[-400:]}")
        kept = [folder.name for folder in checkpoints_of(out) if _sound(folder)]
        if kept != ["step-4"]:
            failures.append(f"kept: {kept}")
        if halves(out):
            failures.append(f"left behind: {halves(out)}")
        status = json.loads((out / "status.json").read_text())
        if status["exit_code"] != 5:
            failures.append(f"status.json says {status}")
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(place)], check=True)
        again = bench.zygote.command(bench.pretrain(out)).wait()
        if again.code or difference(whole, out):
            failures.append(f"started again: exit {again.code} {again.err[-300:]}")
    failures += _full_while_captioning(bench)
    way = "a real small file system" if mounted else "an injected ENOSPC"
    figure = f"{way}: exit {trial.code}, kept {', '.join(kept)}"
    return Figure(14, "disk full", figure, "path, need, free; old kept; exit 5", not failures, failures)


def _full_while_captioning(bench: Bench) -> list[str]:
    """The same of a file of captions, where a disk of two pages may be made."""
    place = bench.fresh("page").parent
    with small_disk(place, 8192) as mounted:
        if not mounted:
            return []
        words = ["caption", bench.pictures, "--checkpoint", bench.whole(), "--json", "--out", place / "captions.jsonl"]
        trial = bench.zygote.command(words).wait()
    told = trial.code == 5 and "captions.jsonl" in trial.err and told_in_one_line(trial)
    return [] if told else [f"caption exits {trial.code}: {trial.err[-400:]}"]


def two_runs(bench: Bench, tier: Tier) -> Figure:
    """Row 16: a second run in a folder, and a third after kill -9 of the first with its reading processes."""
    failures, slowest = [], 0.0
    for settings in ((), ("data.workers=2",)) if tier == "full" else ((),):
        out = bench.fresh("shared")
        words = bench.pretrain(out, *settings, "training.steps=100000", "training.save_every=0")
        first = bench.zygote.command(words)
        wait_for(lambda out=out: (out / "metrics.jsonl").exists(), 60, "the first run")  # type: ignore[misc]
        began = time.monotonic()
        second = bench.zygote.command(words).wait()
        slowest = max(slowest, time.monotonic() - began)
        if second.code != 8 or "in use" not in second.err or not told_in_one_line(second):
            failures.append(f"the second exits {second.code}: {second.err[-300:]}")
        first.send(signal.SIGKILL)
        first.wait()
        third = bench.zygote.command(bench.pretrain(out, *settings, "training.steps=100000", "training.save_every=3"))
        wait_for(lambda out=out: checkpoints_of(out), 60, "the lock of a killed run")  # type: ignore[misc]
        third.send(signal.SIGTERM)
        if (ended := third.wait()).code != 75:
            failures.append(f"the third exits {ended.code}: {ended.err[-300:]}")
    if slowest > 2:  # the machine may be busy; said, and not measured, is one second
        failures.append(f"the second took {slowest:.1f} s")
    figure = f"exit {second.code} after {slowest:.2f} s, start and data included; free after kill -9"
    return Figure(16, "two runs in one folder", figure, "exit 8 within a second", not failures, failures)
