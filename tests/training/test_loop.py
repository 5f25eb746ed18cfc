"""The loop: resuming changes nothing, and every way to end has its exit code."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.config import TrainingConfig
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.model import coca
from grrcoca_cli.training import loop
from grrcoca_cli.training.optimizer import learning_rate, make_optimizers
from grrcoca_cli.training.step import GradientStep
from tests.conftest import StopAfter

TINY = (
    *("model.image_size=32", "model.image_layers=1", "model.unimodal_layers=1", "model.multimodal_layers=1"),
    *("model.image_width=32", "model.text_width=32", "model.vocab_size=300", "model.context_length=40"),
    *("training.batch_size=8", "training.warmup_steps=2", "eval.batch_size=8", "eval.limit=8"),
    *("training.steps=9", "training.eval_every=3", "training.save_every=2", "training.keep=9"),
    *("data.augment=picture", "data.in_memory=false", "model.patch_dropout=0.25", "training.accumulation=2"),
    "data.validation_fraction=0.2",  # 5 steps an epoch
)


def pretrain(shards: Path, out: Path, *settings: str, resume: str = "auto") -> tuple[int, str]:
    flags = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    words = ["pretrain", "--recipe", "demo", "--data", str(shards), "--out", str(out), "--device", "cpu", *flags]
    words += ["--resume", resume]
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def log_of(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def weights_of(out: Path, step: int = 9) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step}" / "model.safetensors")


def same_run(a: Path, b: Path) -> None:
    assert log_of(a) == log_of(b)
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads may sum in another order than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, phantom_shards: Path) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code, err = pretrain(phantom_shards, out)
    torch.set_num_threads(threads)
    assert code == 0, err
    return out


def test_a_run_folder_holds_what_it_should(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names >= {"metrics.jsonl", "recipe.toml", "status.json", "loss.png", "checkpoints", "tokenizer.json"}
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    rows = log_of(whole)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert steps[0].keys() >= {"step", "loss", "contrastive_loss", "caption_loss", "lr"}
    evaluations = [row for row in rows if "loss" not in row]
    assert [row["step"] for row in evaluations] == [0, 3, 6, 9]
    assert all(key.startswith("val_") for row in evaluations for key in row if key != "step")
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [f"step-{n}" for n in (2, 4, 6, 8, 9)]


@pytest.mark.parametrize("cuts", [[2], [2, 5], [3, 3, 3]], ids=str)
def test_stopped_and_continued_equals_uninterrupted(
    whole: Path, phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    out = tmp_path / "run"
    for cut in cuts:
        monkeypatch.setattr(loop, "StopRequest", lambda cut=cut: StopAfter(cut))
        code, err = pretrain(phantom_shards, out)
        assert code == 75, err
        assert json.loads((out / "status.json").read_text())["exit_code"] == 75
    monkeypatch.undo()
    assert pretrain(phantom_shards, out)[0] == 0
    same_run(whole, out)


def test_going_on_from_any_checkpoint_equals_uninterrupted(whole: Path, phantom_shards: Path, tmp_path: Path) -> None:
    """As after kill -9: rows and checkpoints past the newest whole checkpoint are taken again. 4 lies before the
    epoch's edge, 6 behind it."""  # fmt: skip
    for kept in (4, 6):
        out = tmp_path / f"run{kept}"
        shutil.copytree(whole, out)
        for folder in (out / "checkpoints").iterdir():
            if int(folder.name[5:]) > kept:
                shutil.rmtree(folder)
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"step": 10, "lo')  # cut by the kill
        assert pretrain(phantom_shards, out)[0] == 0
        same_run(whole, out)


def test_workers_change_nothing(whole: Path, phantom_shards: Path, tmp_path: Path) -> None:
    assert pretrain(phantom_shards, tmp_path / "run", "data.workers=2")[0] == 0
    same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "empty", "manifest"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    whole: Path, phantom_shards: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    weights = out / "checkpoints" / "step-9" / "model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "flip":
        weights.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "empty":
        weights.write_bytes(b"")
    else:
        (weights.parent / "MANIFEST.json").write_text("{}")
    code, err = pretrain(phantom_shards, out)
    assert code == 0
    assert "trying the checkpoint before it" in err
    assert "continuing from" in err
    same_run(whole, out)


def test_nothing_sound_is_refused(whole: Path, phantom_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for manifest in out.glob("checkpoints/*/MANIFEST.json"):
        manifest.unlink()
    assert pretrain(phantom_shards, out)[0] == 7


def test_another_recipe_is_refused_with_the_difference(whole: Path, phantom_shards: Path) -> None:
    code, err = pretrain(phantom_shards, whole, "training.learning_rate=0.5")
    assert code == 2
    assert "training.learning_rate: 0.0015 there, 0.5 now" in err or "training.learning_rate" in err
    flags = ["--recipe", "demo", "--data", str(phantom_shards), "--out", str(whole), "--resume", "never"]
    assert CliRunner().invoke(app, ["pretrain", *flags]).exit_code == 2


def test_another_recipe_and_other_data_go_on_by_force(whole: Path, phantom_shards: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "run", ("training.steps=11", "data.validation_fraction=0.1")
    shutil.copytree(whole, out)
    code, err = pretrain(phantom_shards, out, *settings)
    assert code == 2
    assert "--resume force" in err
    code, err = pretrain(phantom_shards, out, *settings, resume="force")
    assert code == 0
    assert "warning: continuing with another recipe" in err
    assert "warning: the data differ" in err
    assert log_of(out)[-1]["step"] == 11
    assert pretrain(phantom_shards, out, *settings)[0] == 0  # from here on it is a run of these


def test_a_second_run_in_one_folder_is_refused(phantom_shards: Path, tmp_path: Path) -> None:
    from grrcoca_cli.files import lock_folder

    with lock_folder(tmp_path / "run"):
        code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 8
    assert "in use" in err
    assert pretrain(phantom_shards, tmp_path / "run", "training.steps=1")[0] == 0


def test_a_loss_that_is_not_finite_ends_before_the_step(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = coca.linear_cross_entropy
    calls = []

    def broken(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        # After a trial batch and four steps of two halves: the fifth step, first half.
        return real(states, weight, targets) * (float("nan") if len(calls) == 10 else 1)

    monkeypatch.setattr(coca, "linear_cross_entropy", broken)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 6
    assert "nothing was updated" in err
    assert log_of(tmp_path / "run")[-1]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path / "run", 4).values())


def test_too_many_bad_samples(phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grrcoca_cli.commands import datasets
    from grrcoca_cli.errors import UnreadableImage

    def broken(source: object) -> None:
        raise UnreadableImage("truncated")

    monkeypatch.setattr(datasets, "read_picture", broken)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 4
    assert "8 truncated" in err


def test_a_few_bad_samples_are_counted_and_passed_over(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grrcoca_cli.commands import datasets
    from grrcoca_cli.errors import UnreadableImage

    real = datasets.read_picture

    def sometimes(source: bytes) -> object:
        if sum(source) % 5 == 0:
            raise UnreadableImage("truncated")
        return real(source)

    monkeypatch.setattr(datasets, "read_picture", sometimes)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 0
    assert err.count("unreadable sample (truncated)") == 1
    state = tmp_path / "run" / "checkpoints" / "step-9" / "training" / "state.json"
    assert json.loads(state.read_text())["bad_samples"]["truncated"] > 0


def test_unreadable_validation_samples_are_said_in_words(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.measure

    def unreadable(model: object, batches: Iterable[Batch], *rest: object, **options: object) -> object:
        gone = [Batch(b.images[:0], b.tokens[:0], [], [], Counter(truncated=len(b.keys))) for b in batches]
        return real(model, gone, *rest, **options)

    monkeypatch.setattr(loop, "measure", unreadable)
    code, err = pretrain(phantom_shards, tmp_path / "run", "training.keep_best=true", "training.patience=1")
    assert code == 0
    assert "no validation sample can be read (8 truncated)" in err
    assert "nan" not in err.lower()
    assert not (tmp_path / "run" / "best").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_full_disk_keeps_the_old_checkpoint(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grrcoca_cli.training import checkpoint

    real = checkpoint._save_tensors

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "_save_tensors", full)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 5
    assert "step-4" in err
    assert "MB free" in err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    assert pretrain(phantom_shards, tmp_path / "run")[0] == 0


def test_no_memory_names_ways_out(phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(GradientStep, "backward", hungry)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 5
    assert "gradient_checkpointing" in err


def test_sigterm_saves_and_the_same_command_goes_on(whole: Path, phantom_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [part for setting in (*TINY, "training.steps=4000", "training.save_every=0") for part in ("--set", setting)]
    command = [sys.executable, "-m", "grrcoca_cli", "pretrain", "--recipe", "demo", "--data", str(phantom_shards)]
    process = subprocess.Popen([*command, "--out", str(out), *flags], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    saved = list((out / "checkpoints").iterdir())
    assert len(saved) == 1
    assert int(saved[0].name[5:]) == log_of(out)[-1]["step"]


def test_schedule_warms_up_and_ends_at_its_floor() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_what_does_not_decay() -> None:
    from grrcoca_cli.config import ModelConfig
    from grrcoca_cli.model.coca import CoCa

    model = CoCa(ModelConfig.model_validate({"variant": "coca", "size": "tiny", "vocab_size": 300}))
    (optimizer,) = make_optimizers(model, TrainingConfig())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, *others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    undecayed = set().union(*others)
    assert "text_decoder.head.weight" in decayed
    assert "image_encoder.blocks.0.mlp.up.weight" in decayed
    assert {"logit_scale", "text_decoder.cls", "image_encoder.positions", "generative_pooler.queries"} <= undecayed
    assert not [
        name for name in decayed if "norm" in name or "bias" in name or "embedding.weight" in name.split("_")[0]
    ]
    assert len(decayed) + len(undecayed) == len(names)
    muon, adamw = make_optimizers(model, TrainingConfig(optimizer="muon"))
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    beside = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden | beside == set(names.values())
    assert hidden < decayed
    assert "text_decoder.head.weight" in beside


def test_muon_resumes_bit_for_bit(phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("training.optimizer=muon", "training.steps=9")
    assert pretrain(phantom_shards, tmp_path / "whole", *settings)[0] == 0
    monkeypatch.setattr(loop, "StopRequest", lambda: StopAfter(5))
    assert pretrain(phantom_shards, tmp_path / "cut", *settings)[0] == 75
    monkeypatch.undo()
    assert pretrain(phantom_shards, tmp_path / "cut", *settings)[0] == 0
    same_run(tmp_path / "whole", tmp_path / "cut")
