"""What pretrain and finetune print: the result on stdout, everything else on stderr."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.console import print_result
from tests.conftest import TINY, set_flags

SETTINGS = set_flags(*TINY, "training.steps=2")


def run(*words: object) -> tuple[str, str]:
    result = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_a_run_prints_its_last_checkpoint(phantom_shards: Path, tmp_path: Path) -> None:
    words = ("pretrain", "--recipe", "demo", "--data", phantom_shards, "--out", tmp_path / "run", *SETTINGS)
    last = tmp_path / "run" / "checkpoints" / "step-2"
    assert run(*words)[0] == f"{last}\n"
    found = json.loads(run(*words, "--json")[0])  # a run that is finished has the same result
    assert (found["schema"], found["checkpoint"], found["run"]) == (1, str(last), str(tmp_path / "run"))
    assert (found["step"], found["best_checkpoint"]) == (2, None)
    assert found["evaluation"]["step"] == 2
    assert found["evaluation"]["val_caption_loss"] > 0


def test_finetuning_prints_json_and_its_best_checkpoint(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    settings = set_flags(
        *("training.steps=2", "training.batch_size=8", "training.eval_every=1", "training.keep_best=true"),
        "data.workers=0",
    )
    words = ("finetune", "--dataset", "folder", "--data", phantom_studies, "--checkpoint", tiny_run)
    found = json.loads(run(*words, "--out", tmp_path / "run", "--json", *settings)[0])
    assert found["step"] == 2
    assert Path(found["checkpoint"]).is_dir()
    assert found["best_checkpoint"] == str(tmp_path / "run" / "best")


def test_other_processes_of_a_run_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    print_result("a line")
    assert capsys.readouterr().out == ""


def test_a_dry_run_prints_lines_or_json(phantom_shards: Path, tmp_path: Path) -> None:
    words = (
        "pretrain",
        "--recipe",
        "demo",
        "--data",
        phantom_shards,
        "--out",
        tmp_path / "run",
        "--dry-run",
        *SETTINGS,
    )
    out, _ = run(*words)
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *("data", "validation samples also in training"),
        *("model", "parameters", "training", "arithmetic", "memory of a device", "disk", "time"),
    ]
    out, err = run(*words, "--json")
    assert json.loads(out)["schema"] == 1
    assert "data: " in err
