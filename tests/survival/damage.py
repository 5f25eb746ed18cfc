"""Rows 3, 14 and 16: damaged checkpoints, a full disk, a folder in use."""

import errno
import io
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from grrcoca_cli.training.checkpoint import checkpoints_of, find_checkpoint
from tests.survival.children import wait_for
from tests.survival.harness import Bench, Figure, Tier, copy_run, difference, halves, is_sound, told_in_one_line


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
        kept = [folder.name for folder in checkpoints_of(out) if is_sound(folder)]
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
