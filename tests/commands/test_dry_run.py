"""``--dry-run``: what a run would take, on stdout as lines or as JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grrcoca_cli.commands.datasets import open_data
from grrcoca_cli.commands.train import Options, finetune
from grrcoca_cli.config import DataConfig
from grrcoca_cli.errors import OutOfResources
from grrcoca_cli.training.checkpoint import count_parameters, find_checkpoint, load_checkpoint
from grrcoca_cli.training.step import GradientStep


def test_a_dry_run_says_what_a_run_would_take(
    tiny_run: Path, phantom_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("training.steps=30", "training.batch_size=8", "training.keep=4")
    options = Options(
        tmp_path / "x", "demo_finetune", settings, str(phantom_shards), "cpu", dry_run=True, dataset="shards"
    )
    assert finetune(options, tiny_run) is None
    lines = capsys.readouterr().out
    assert finetune(replace(options, as_json=True), tiny_run) is None
    summary = json.loads(capsys.readouterr().out)
    assert summary["schema"] == 1
    assert summary["parameters"] == count_parameters(find_checkpoint(tiny_run))
    assert summary["epochs"] == round(30 * 8 / summary["train"], 2)
    assert summary["seconds_per_step"] > 0
    assert summary["seconds_to_end"] == pytest.approx(30 * summary["seconds_per_step"], abs=0.1)
    found = summary["estimate"]
    assert (found["images_seen"], found["micro_batch"], found["checkpoints"]) == (240, 8, 5)
    assert "16-bit weights" not in lines
    assert f"data: {summary['train']} training and {summary['validation']} validation samples" in lines
    for word in (
        "parameters: ",
        "240 pictures seen",
        "arithmetic: ",
        "memory of a device: ",
        "5 checkpoints",
        "time: ",
    ):
        assert word in lines
    assert not (tmp_path / "x").exists()
    # The mean is over the captions' real tokens.
    loaded = load_checkpoint(find_checkpoint(tiny_run))
    train = open_data(DataConfig(dataset="shards", path=str(phantom_shards)), tmp_path).train
    lengths = [loaded.tokenizer.count(caption) for i in range(len(train)) for caption in train.peek(i).captions]
    kept = [min(length, loaded.config.model.context_length) for length in lengths]
    assert found["mean_tokens"] == pytest.approx(sum(kept) / len(kept))


def test_a_dry_run_finds_that_memory_does_not_suffice(
    tiny_run: Path, phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(GradientStep, "backward", hungry)
    settings = ("training.batch_size=8",)
    options = Options(
        tmp_path / "x", "demo_finetune", settings, str(phantom_shards), "cpu", dry_run=True, dataset="shards"
    )
    with pytest.raises(OutOfResources, match="8 pictures of 32 px"):
        finetune(options, tiny_run)
