"""What the rows of the survival table share: a small run, processes to end in any way, and figures to print."""

import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from grrcoca_cli.errors import CheckpointRefused
from grrcoca_cli.files import MANIFEST, sha256_of
from grrcoca_cli.training.checkpoint import verify_checkpoint
from tests.survival.children import Trial, Zygote

Tier = Literal["fast", "full"]

RECIPE = """
[model]
size = "tiny"
image_size = 32
image_width = 32
image_layers = 1
text_width = 32
unimodal_layers = 1
multimodal_layers = 1
embed_dim = 32
pooler_queries = 4
vocab_size = 300
context_length = 24
patch_dropout = 0.25

[data]
dataset = "shards"
augment = "picture"
validation_fraction = 0.2

[training]
steps = 9
batch_size = 8
accumulation = 2
warmup_steps = 3
eval_every = 5
save_every = 4
keep = 9

[eval]
batch_size = 4
limit = 16
"""

WORDS = ("small", "large", "round", "dark", "bright", "left", "right", "patch", "line", "dot")


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was counted, against what it should be."""

    row: int
    behaviour: str
    figure: str
    target: str
    ok: bool
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.row:>3}  {self.behaviour:<46}  {self.figure:<58}  {self.target:<36}  {'ok' if self.ok else 'NO'}"


@dataclass(frozen=True)
class Bench:
    """Where rows work: a zygote, data, and the run that nobody disturbed."""

    zygote: Zygote
    folder: Path
    shards: Path
    pictures: Path
    recipe: Path
    _whole: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def fresh(self, name: str) -> Path:
        """A path that is not there yet."""
        number = sum(1 for _ in self.folder.glob(f"{name}-*"))
        path = self.folder / f"{name}-{number}"
        path.mkdir()
        return path / "run"

    def pretrain(self, out: Path, *settings: str) -> list[str]:
        """Words of the small run's command; data as folder where ``settings`` say so."""
        data = self.pictures if "data.dataset=folder" in settings else self.shards
        words = ["pretrain", "--recipe", str(self.recipe), "--data", str(data), "--out", str(out), "--device", "cpu"]
        return [*words, *(part for setting in settings for part in ("--set", setting))]

    def whole(self, *settings: str) -> Path:
        """The run folder of an undisturbed run with these settings."""
        if settings not in self._whole:
            out = self.fresh("whole")
            trial = self.zygote.command(self.pretrain(out, *settings)).wait()
            assert trial.code == 0, trial.err
            self._whole[settings] = out
        return self._whole[settings]


@contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    """A bench whose files lie in ``folder``."""
    shards, pictures, recipe = folder / "pairs.tar", folder / "pictures", folder / "recipe.toml"
    write_shard(shards, 48)
    write_pictures(pictures, 48)
    recipe.write_text(RECIPE)
    with Zygote(folder) as zygote:
        yield Bench(zygote, folder, shards, pictures, recipe)


def pairs(count: int) -> Iterator[tuple[str, bytes, str]]:
    """Name, PNG of 32 pixels and caption of small made-up samples, the same each time."""
    dice = random.Random(0)
    noise = np.random.default_rng(0)
    for number in range(count):
        stream = BytesIO()
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
        words = " ".join(dice.choices(WORDS, k=4))
        yield f"{number:05d}", stream.getvalue(), f"{words} {number}"


def write_shard(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for name, picture, caption in pairs(count):
            for extension, content in (("png", picture), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(content)
                archive.addfile(info, BytesIO(content))


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for name, picture, caption in pairs(count):
        (folder / f"{name}.png").write_bytes(picture)
        (folder / f"{name}.txt").write_text(caption)


def rows_of(out: Path) -> list[dict[str, float]]:
    """The log, without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def steps_of(out: Path) -> int:
    """Whole lines in the log so far, which may be being written."""
    with suppress(FileNotFoundError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def difference(whole: Path, other: Path) -> str:
    """In what two finished runs differ, or nothing."""
    if rows_of(whole) != rows_of(other):
        return "metrics.jsonl differs"
    last = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])).name
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        first, second = (load_file(out / "checkpoints" / last / name) for out in (whole, other))
        if first.keys() != second.keys() or not all(np.array_equal(first[key], second[key]) for key in first):
            return f"{name} differs"
    return ""


def halves(out: Path) -> list[str]:
    """Hidden files and folders of a run folder: what nobody finished writing."""
    return [str(path.relative_to(out)) for path in out.rglob(".*")]


def is_sound(folder: Path) -> bool:
    """Whether a checkpoint agrees with its manifest."""
    try:
        verify_checkpoint(folder)
    except CheckpointRefused:
        return False
    return True


def told_in_one_line(trial: Trial) -> bool:
    """Whether a failure was told as one line that begins with ``error:``, without a traceback."""
    errors = [line for line in trial.err.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and "Traceback" not in trial.err


def seal(folder: Path) -> None:
    """Write a manifest that fits what lies in a checkpoint, as an attacker would."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    entries = {path: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    named = {str(path.relative_to(folder)): entry for path, entry in entries.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": named}))


def copy_run(source: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True, parents=True)
    shutil.copytree(source, target)
    return target
