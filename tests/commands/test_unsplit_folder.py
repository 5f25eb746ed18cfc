"""A folder without splits: every command cuts the same training and validation samples by hash."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from tests.conftest import set_flags

COUNT = 40
FRACTION = "data.validation_fraction=0.3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images and a table with the columns file and caption."""
    root = tmp_path_factory.mktemp("unsplit")
    generator = np.random.default_rng(0)
    with (root / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for number in range(COUNT):
            name = f"{number:02d}.png"
            Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(root / name)
            rows.writerow([name, f"nodule number {number}"])
    return root


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def finetune(folder: Path, tiny_run: Path, out: Path, *words: object) -> tuple[int, str, str]:
    settings = set_flags("training.steps=2", "training.batch_size=4", "data.workers=0", FRACTION)
    flags = ("--dataset", "folder", "--data", folder, "--checkpoint", tiny_run, "--out", out, "--device", "cpu")
    return run("finetune", *flags, *settings, *words)


def prepared(folder: Path, out: Path, *words: object) -> int:
    code, text, err = run("prepare", "shards", "--dataset", "folder", "--data", folder, "--out", out, "--json", *words)
    assert code == 0, err
    return int(json.loads(text)["usable"])


def test_training_and_evaluation_cut_the_same_validation_samples(folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    code, _, err = finetune(folder, tiny_run, tmp_path / "dry", "--dry-run")
    assert code == 0, err
    code, _, err = finetune(folder, tiny_run, tmp_path / "run")
    assert code == 0, err
    counts = next(line for line in err.splitlines() if line.startswith("data: "))
    training, validation = (int(word) for word in counts.split() if word.isdigit())
    assert training + validation == COUNT
    assert 0 < validation < training
    words = ("--checkpoint", tmp_path / "run", "--dataset", "folder", "--data", folder, "--json", "--set", FRACTION)
    sizes = {}
    for split in ("train", "val", "all"):
        code, text, err = run("eval", *words, "--split", split, "--set", "eval.resamples=0")
        assert code == 0, err
        sizes[split] = json.loads(text)["samples"]
    assert sizes == {"train": training, "val": validation, "all": COUNT}


def test_a_split_that_is_not_there_is_refused_with_those_that_are(folder: Path, tiny_run: Path) -> None:
    code, _, err = run("eval", "--checkpoint", tiny_run, "--dataset", "folder", "--data", folder, "--split", "test")
    assert code == 2
    assert "no split 'test'" in err
    for name in ("all", "train", "valid"):
        assert name in err.partition("use ")[2]


def test_shards_of_the_whole_folder_by_default_and_of_each_side_by_name(folder: Path, tmp_path: Path) -> None:
    assert prepared(folder, tmp_path / "default") == COUNT
    sides = [prepared(folder, tmp_path / name, "--split", name) for name in ("train", "valid")]
    assert sum(sides) == COUNT
    assert min(sides) > 0
