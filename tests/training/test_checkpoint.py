"""Checkpoints: a round trip changes nothing, and what is unsafe, damaged or foreign is refused with code 7."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grrcoca_cli import __version__
from grrcoca_cli.cli import app
from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import CheckpointRefused, UsageError
from grrcoca_cli.files import sha256_of, write_atomically
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.checkpoint import (
    CheckpointConfig,
    ImageContract,
    find_checkpoint,
    load_checkpoint,
    read_config,
    save_checkpoint,
)


def saved(folder: Path, **settings: object) -> CoCa:
    tokenizer = CaptionTokenizer.train(["a caption"], 300)
    model_config = ModelConfig.model_validate(
        {"size": "tiny", "image_size": 32, "vocab_size": tokenizer.vocab_size, **settings}
    )
    config = CheckpointConfig(
        format_version=1,
        grrcoca_version=__version__,
        model=model_config,
        image=ImageContract(size=32, fit="letterbox", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), window="lung"),
        generation=GenerationConfig(beams=3),
        step=7,
        trained_on="test data",
    )
    model = CoCa(model_config).eval()
    save_checkpoint(folder, model, tokenizer, config)
    return model


@pytest.mark.parametrize("settings", [{}, {"tied_embeddings": True}, {"variant": "coca"}], ids=str)
def test_a_round_trip_changes_nothing(tmp_path: Path, settings: dict[str, object]) -> None:
    model = saved(tmp_path / "c", **settings)
    loaded = load_checkpoint(tmp_path / "c")
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    for ours, theirs in zip(model(images, tokens, 0)[:4], loaded.model(images, tokens, 0)[:4], strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.config.image.window == "lung"
    assert loaded.config.generation.beams == 3
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("a caption, ünïcödé", 77)) == "a caption, ünïcödé"
    tied = loaded.model.text_decoder.head.weight is loaded.model.text_decoder.token_embedding.weight
    assert tied == bool(settings.get("tied_embeddings"))
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        saved(tmp_path / "c")
    finally:
        os.umask(umask)
    for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")]:
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_nothing_is_left_of_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "c")
    before = read_config(tmp_path / "c")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="no space left"):
        saved(tmp_path / "d")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert load_checkpoint(tmp_path / "c").config == before


def test_atomic_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="no space left"):
        write_atomically(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def seal(folder: Path) -> None:
    """A manifest that fits, as an attacker would write one."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.json"]
    entries = {path: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    named = {str(path.relative_to(folder)): entry for path, entry in entries.items()}
    (folder / "MANIFEST.json").write_text(json.dumps({"files": named}))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("place", ["weights", "file", "tokenizer", "config"])
def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "c")
    evil = pickle.dumps(Harmful())
    target = tmp_path / "c"
    if place == "file":
        target = tmp_path / "model.pt"
        target.write_bytes(evil)
    else:
        names = {"weights": "model.safetensors", "tokenizer": "tokenizer.json", "config": "config.json"}
        (target / names[place]).write_bytes(evil)
        seal(target)
    with pytest.raises(CheckpointRefused):
        load_checkpoint(find_checkpoint(target))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format_version=9), "format version 9"),
        (lambda c: c["model"].update(image_width="wide"), "model.image_width"),
        (lambda c: c["model"].update(image_width=192), "does not fit|shape"),
        (lambda c: c["model"].update(image_layers=5), "does not fit"),
        (lambda c: c["model"].update(surprise=1), "model.surprise"),
        (lambda c: c.pop("format_version"), "damaged"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, change: object, said: str) -> None:
    saved(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    change(config)  # type: ignore[operator]
    path.write_text(json.dumps(config))
    seal(tmp_path / "c")
    with pytest.raises(CheckpointRefused, match=said):
        load_checkpoint(tmp_path / "c")


def test_the_commands_end_with_code_7(tmp_path: Path, tiny_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for weights in run.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    picture = tmp_path / "x.png"
    picture.write_bytes(b"")
    for words in (["caption", str(picture), "--checkpoint", str(run)], ["info", str(run)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 7, words
        assert "holds no sound checkpoint" in result.stderr


def test_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointRefused, match="no sound checkpoint"):
        find_checkpoint(tmp_path)
