"""TensorBoard and Weights & Biases beside ``metrics.jsonl``: for looking on, never needed and never fatal."""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from grrcoca_cli.config import Recipe
from grrcoca_cli.console import say
from grrcoca_cli.files import write_atomically

Row = Mapping[str, float | int]

WANDB_ID = "wandb-id"
"""File of a run folder that names its W&B run, so that a resumed run goes on there."""


class Writer(Protocol):
    """What takes rows of scalars. Making one loads its library; its output is opened with the first row."""

    def add(self, row: Row, step: int) -> None:
        """Take a row."""

    def close(self) -> None:
        """Write what is still waiting."""


class Loggers:
    """The loggers that a run asked for; one that fails is switched off with a warning, and training goes on.

    Args:
        writers: By name.
    """

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self._writers = dict(writers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, row: Row, step: int) -> None:
        """Pass on the scalars of a row of ``metrics.jsonl`` that stands for the weights after ``step`` steps."""
        scalars = {name: value for name, value in row.items() if name != "step"}
        for name, writer in list(self._writers.items()):
            self._attempt(name, lambda writer=writer: writer.add(scalars, step))  # type: ignore[misc]

    def close(self) -> None:
        """Write what is still waiting; what is logged afterwards is dropped."""
        for name, writer in list(self._writers.items()):
            self._attempt(name, writer.close)
        self._writers.clear()

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        # Any failure of a foreign library, from a full disk to a server that is gone, must not end days of training.
        except Exception as error:
            del self._writers[name]
            reason = str(error).strip().partition("\n")[0]
            say(f"warning: logging to {name} failed and is off from here ({type(error).__name__}: {reason})")


def open_loggers(names: Sequence[str], out: Path, recipe: Recipe) -> Loggers:
    """The loggers named in ``training.loggers``; one whose library cannot be imported is left out with a warning.

    Args:
        names: ``tensorboard`` (writes into ``out/tensorboard``) and ``wandb`` (into ``out/wandb``; offline unless
            ``WANDB_MODE`` says otherwise).
        out: The run folder.
        recipe: Kept with the W&B run.
    """
    return Loggers(_make_writers(names, out, recipe))


def without_missing_loggers(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with those of its loggers that can be imported: to warn of the others before any work."""
    names = tuple(_make_writers(recipe.training.loggers, out, recipe))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"loggers": names})})


def _make_writers(names: Sequence[str], out: Path, recipe: Recipe) -> dict[str, Writer]:
    makers: dict[str, Callable[[], Writer]] = {
        "tensorboard": lambda: _TensorBoard(out / "tensorboard"),
        "wandb": lambda: _WandB(out, recipe),
    }
    writers: dict[str, Writer] = {}
    for name in names:
        try:
            writers[name] = makers[name]()
        # A library that is broken, or fits another one badly, fails by errors of its own.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            say(
                f"warning: training.loggers asks for {name}, which cannot be imported ({type(error).__name__}: "
                f"{reason}); training continues without it. To log there: pip install 'grrcoca[{name}]'"
            )
    return writers


class _TensorBoard:
    """Scalars as ``train/NAME`` and ``val/NAME``; a resumed run hides what an earlier start wrote of the same steps."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def add(self, row: Row, step: int) -> None:
        names = {
            name: f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}" for name in row
        }
        if self._writer is None:
            # An evaluation comes after the training step of its number, which a purge from there would hide.
            first = step + any(name.startswith("val/") for name in names.values())
            self._writer = self._open(self._folder, purge_step=first)
        for name, value in row.items():
            self._writer.add_scalar(names[name], value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WandB:
    """Scalars over ``step``, which is a value like others: W&B's own counter refuses to go back after a resume."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self._mode = os.environ.get("WANDB_MODE", "offline")
        if self._mode != "online":  # nothing leaves the machine unasked, its reports of its own errors included
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._library = wandb
        self._out = out
        self._recipe = recipe
        self._run: Any = None

    def add(self, row: Row, step: int) -> None:
        if self._run is None:
            self._run = self._start()
        self._run.log({"step": step, **row})

    def _start(self) -> Any:
        kept = self._out / WANDB_ID
        if not kept.exists():
            write_atomically(kept, secrets.token_hex(4))
        run = self._library.init(
            project="grrcoca",
            name=self._out.name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            dir=self._out,
            mode=self._mode,
            config=self._recipe.model_dump(mode="json"),
            settings=self._library.Settings(console="off", disable_git=True, disable_code=True),
        )
        run.define_metric("*", step_metric="step")
        return run

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
