"""Fixtures that every test folder may use."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is not here")
    return SHARED_DATA


TINY = (
    "model.image_size=32",
    "model.image_layers=1",
    "model.unimodal_layers=1",
    "model.multimodal_layers=1",
    "model.image_width=32",
    "model.text_width=32",
    "model.vocab_size=300",
    "model.context_length=40",
    "training.batch_size=8",
    "training.warmup_steps=2",
    "training.eval_every=0",
    "eval.batch_size=8",
    "eval.limit=8",
)
"""Settings that make a recipe's run a matter of seconds."""


def set_flags(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


class StopAfter:
    """In place of a signal: asks for a stop at the nth time it is asked."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> "StopAfter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> bool:
        self.count -= 1
        return self.count < 0


@pytest.fixture(scope="session")
def phantom_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with 24 synthetic pairs each."""
    from medical.phantom_files import write_shards

    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, count=48, seed=1, shard_size=24, pixels=64)
    return folder


@pytest.fixture(scope="session")
def phantom_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic DICOM files with caption files: 16 to train, 8 to validate, 6 to test."""
    from medical.phantom_files import write_dicom_set

    folder = tmp_path_factory.mktemp("studies")
    return write_dicom_set(folder, splits={"train": 16, "valid": 8, "test": 6}, seed=2, pixels=64)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, phantom_shards: Path) -> Path:
    """A finished run folder of a very small model."""
    from typer.testing import CliRunner

    from grrcoca_cli.cli import app

    out = tmp_path_factory.mktemp("runs") / "tiny"
    flags = ["--recipe", "demo", "--data", str(phantom_shards), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, ["pretrain", *flags, *set_flags(*TINY, "training.steps=4")])
    assert result.exit_code == 0, result.output
    return out
