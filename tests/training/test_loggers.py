"""Loggers: scalars arrive, resumed runs go on, and none that fails ends a training."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from grrcoca_cli.config import Recipe
from grrcoca_cli.training.loggers import Loggers, open_loggers
from tests.training.test_loop import pretrain

TRAINING = {"step": 3, "loss": 1.5, "lr": 0.1}
EVALUATION = {"step": 3, "val_caption_loss": 0.5, "val_samples": 8}


class Kept:
    """A writer that keeps its rows; from the given one on it fails."""

    def __init__(self, fails_at: int = 99) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fails_at = fails_at

    def add(self, row: Any, step: int) -> None:
        if len(self.rows) >= self.fails_at:
            raise OSError(28, "No space left on device")
        self.rows.append((step, dict(row)))

    def close(self) -> None:
        if self.fails_at < 99:
            raise ConnectionError("server gone\nwith much\nto say")


def test_one_that_fails_is_switched_off_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Kept(), Kept(1)
    with Loggers({"bad": bad, "good": good}) as loggers:
        for step in range(1, 6):
            loggers.log({"step": step, "loss": 1.0}, step)
    assert [step for step, _ in good.rows] == [1, 2, 3, 4, 5]
    assert good.rows[0] == (1, {"loss": 1.0})
    assert len(bad.rows) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "warning: logging to bad failed and is off from here (OSError: [Errno 28] No space left on device)"
    ]


def test_one_that_fails_at_the_end_is_no_failure_either(capsys: pytest.CaptureFixture[str]) -> None:
    with Loggers({"bad": Kept(5)}) as loggers:
        loggers.log(TRAINING, 3)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_what_is_not_installed_is_left_out_with_a_warning(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setitem(sys.modules, module, None)
    with open_loggers([name], tmp_path, Recipe()) as loggers:
        loggers.log(TRAINING, 3)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: training.loggers asks for {name}")
    assert f"pip install 'grrcoca[{name}]'" in warning
    assert warning.count("\n") == 1


def test_a_missing_logger_is_said_once_before_any_work(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, err = pretrain(phantom_shards, tmp_path / "run", 'training.loggers=["tensorboard"]')
    assert code == 0
    assert err.count("warning: training.loggers asks for tensorboard") == 1
    assert err.index("warning: training.loggers") < err.index("training the tokenizer")


def test_none_is_the_default(tmp_path: Path) -> None:
    with open_loggers([], tmp_path, Recipe()) as loggers:
        loggers.log(TRAINING, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "purged"), [(TRAINING, 3), (EVALUATION, 4)], ids=["training", "evaluation"])
def test_tensorboard_hides_the_steps_taken_again(
    first: dict[str, float], purged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: Path, purge_step: int) -> None:
            found.append((folder, purge_step))

        def add_scalar(self, *given: object) -> None:
            found.append(given)

        def close(self) -> None:
            found.append(("closed",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with open_loggers(["tensorboard"], tmp_path, Recipe()) as loggers:
        loggers.log(first, 3)
        loggers.log({"step": 4, "loss": 2.0}, 4)
    assert found[0] == (tmp_path / "tensorboard", purged)
    assert found[-2:] == [("train/loss", 2.0, 4), ("closed",)]
    names = {given[0] for given in found[1:-2]}
    assert names == ({"train/loss", "train/lr"} if first is TRAINING else {"val/caption_loss", "val/samples"})


def test_tensorboard_reads_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first in (1, 3):  # a start and a resume from the second step
        with open_loggers(["tensorboard"], tmp_path, Recipe()) as loggers:
            for step in range(first, 6):
                loggers.log({"step": step, "loss": first + step / 8}, step)
            loggers.log({"step": 5, "val_caption_loss": 0.5}, 5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        *((1, 1.125), (2, 1.25), (3, 3.375), (4, 3.5), (5, 3.625)),
    ]
    assert [(e.step, e.value) for e in events.Scalars("val/caption_loss")] == [(5, 0.5)]


@pytest.mark.parametrize("mode", [None, "online", "disabled"])
def test_wandb_is_offline_unless_asked_and_goes_on_in_its_run(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []
    module = ModuleType("wandb")
    run = SimpleNamespace(log=logged.append, define_metric=lambda *_, **__: None, finish=lambda: None)
    module.init = lambda **given: started.append(given) or run  # type: ignore[attr-defined, func-returns-value]
    module.Settings = lambda **given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    for _ in range(2):
        with open_loggers(["wandb"], tmp_path, Recipe()) as loggers:
            loggers.log(TRAINING, 3)
    first, second = started
    assert first["mode"] == second["mode"] == (mode or "offline")
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["training"]["steps"] == Recipe().training.steps
    assert logged == [TRAINING, TRAINING]
