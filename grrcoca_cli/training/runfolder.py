"""A run folder: the resolved recipe, the status, the metrics, the loss curve."""

import gc
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w

from grrcoca_cli.config import Recipe, read_recipe
from grrcoca_cli.errors import UsageError
from grrcoca_cli.files import PARTIAL, explain_os_errors, is_locked, write_atomically, write_json

RECIPE = "recipe.toml"
STATUS = "status.json"
METRICS = "metrics.jsonl"
LOSS_PICTURE = "loss.png"

# What may differ when a run goes on: it changes no weight.
FREE_ON_RESUME = {
    *("data.workers", "data.in_memory", "data.max_bad_fraction", "training.save_every", "training.keep"),
    *("training.loggers", "distributed.strategy", "distributed.timeout"),
}


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    return {f"{section}.{key}": value for section, values in tables.items() for key, value in values.items()}


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Keep the resolved recipe, every default named."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    write_atomically(out / RECIPE, tomli_w.dumps(tables))


def recipe_differences(out: Path, recipe: Recipe) -> list[str]:
    """Lines that say where the recipe kept in ``out`` differs from ``recipe`` in what shapes the result."""
    old = flatten(read_recipe(str(out / RECIPE)))
    new = flatten(recipe.model_dump(mode="json", exclude_none=True))
    names = [name for name in sorted({*old, *new} - FREE_ON_RESUME) if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name, 'unset')!r} there, {new.get(name, 'unset')!r} now" for name in names]


def write_status(out: Path, state: str, step: int, exit_code: int | None = None, reason: str = "") -> None:
    """Say in ``status.json`` how the run stands: ``running``, ``finished``, ``stopped`` or ``failed``."""
    status = {"state": state, "step": step, "exit_code": exit_code, "reason": reason, "pid": os.getpid()}
    write_json(out / STATUS, status | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})


def read_status(out: Path) -> dict[str, Any]:
    """The content of ``status.json``; empty where there is none."""
    try:
        status = json.loads((out / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) else {}


def run_state(out: Path) -> dict[str, Any]:
    """`read_status`, in which a run that no process holds any more is ``killed`` instead of ``running``."""
    status = read_status(out)
    if status.get("state") == "running" and not is_locked(out):
        return status | {"state": "killed"}
    return status


def describe_state(out: Path) -> str:
    """How the run stands, for people: ``running at step 20``; empty where the folder holds no run."""
    status = run_state(out)
    if not status:
        return "not started" if (out / RECIPE).exists() else ""
    text = f"{status.get('state')} at step {status.get('step')}"
    if status.get("state") in ("killed", "stopped"):
        return f"{text}; the same command resumes it"
    return f"{text}: {status['reason']}" if status.get("reason") else text


def newest_finished_run(root: Path) -> Path | None:
    """The run folder under ``root``, at most two levels down, that finished last."""
    found = [path.parent for pattern in ("*/", "*/*/") for path in root.glob(pattern + STATUS)]
    finished = [run for run in found if read_status(run).get("state") == "finished"]
    return max(finished, key=lambda run: (run / STATUS).stat().st_mtime, default=None)


class MetricsLog:
    """``metrics.jsonl``: one row a training step, one an evaluation, each on disk as soon as it is known.

    In memory stand the evaluations, and of the training rows a thinned curve: a long run must not grow.

    Attributes:
        evaluations: Their rows.
        curve: (step, contrastive loss, caption loss) of evenly spaced training steps, at most `CURVE_POINTS`.
        last_step: The step of the last row.
    """

    CURVE_POINTS = 4096

    def __init__(self, out: Path, last_step: int) -> None:
        """Open the log, without rows after ``last_step``: they belong to steps that will be taken again."""
        self.path: Path | None = out / METRICS
        self.evaluations: list[dict[str, Any]] = []
        self.curve: list[tuple[int, float, float]] = []
        self.last_step = 0
        self._stride = 1
        with explain_os_errors(self.path):
            end = 0
            self.path.touch()
            for row, position in _rows_with_ends(self.path):
                if row["step"] > last_step:
                    break
                self._note(row)
                end = position
            os.truncate(self.path, end)

    def without_file(self) -> Self:
        """The same rows, kept in memory alone: for the processes that do not write."""
        self.path = None
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._note(row)
        if self.path:
            line = json.dumps(row) + "\n"
            with explain_os_errors(self.path, len(line)), self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation after ``step`` steps is in the log."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == step

    def evaluations_since_best(self, monitor: str) -> int:
        """How many evaluations came after the one with the lowest validation loss ``monitor``; 0 without any."""
        losses = [row[f"val_{monitor}"] for row in self.evaluations]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _note(self, row: dict[str, Any]) -> None:
        self.last_step = int(row["step"])
        if is_evaluation(row):
            self.evaluations.append(row)
        elif self.last_step % self._stride == 0:
            self.curve.append((self.last_step, row["contrastive_loss"], row["caption_loss"]))
            if len(self.curve) > self.CURVE_POINTS:
                self._stride *= 2
                self.curve = [point for point in self.curve if point[0] % self._stride == 0]


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line that a kill cut short is dropped.

    Raises:
        UsageError: Another line is not a row.
    """
    path = out / METRICS
    return [row for row, _ in _rows_with_ends(path)] if path.exists() else []


def _rows_with_ends(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each row, and the position behind its line."""
    try:
        with path.open("rb") as file:
            position = 0
            for number, line in enumerate(file, start=1):
                position += len(line)
                row = _row_of(line)
                if row is not None:
                    yield row, position
                elif file.read(1):
                    raise UsageError(f"{path}, line {number}: not a row of metrics; move the file away to go on")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int) else None


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row is an evaluation's."""
    return any(key.startswith("val_") for key in row)


def draw_losses(out: Path, log: MetricsLog) -> None:
    """Draw ``loss.png``: contrastive and caption loss over steps, training and validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))  # a layout that is found by trying would draw it twice
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.91, wspace=0.18)
    for column, name in enumerate(("contrastive_loss", "caption_loss"), start=1):
        axes = figure.add_subplot(1, 2, column)
        if log.curve:
            axes.plot(*_columns(log.curve, 0, column), color="0.7", lw=0.8, label="training")
        if log.evaluations:
            points = _columns(log.evaluations, "step", f"val_{name}")
            axes.plot(*points, ".-", color="tab:blue", label="validation")
        axes.set(title=name.replace("_", " "), xlabel="step", ylabel="nats")
        axes.grid(alpha=0.3)
        axes.legend()
    temporary = out / f".{LOSS_PICTURE}{PARTIAL}"
    with explain_os_errors(out / LOSS_PICTURE):
        try:
            figure.savefig(temporary, dpi=120, format="png")
            temporary.replace(out / LOSS_PICTURE)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    del figure, axes
    gc.collect()  # a figure refers to itself: left to chance, a megabyte a picture waits, and memory breaks up


def _columns(rows: Sequence[Any], *names: str | int) -> list[list[float]]:
    return [[row[name] for row in rows] for name in names]
