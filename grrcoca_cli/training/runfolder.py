"""A run folder: the resolved recipe, the status, the metrics, the loss curve."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from grrcoca_cli.config import Recipe, read_recipe
from grrcoca_cli.errors import UsageError
from grrcoca_cli.files import explain_os_errors, write_atomically, write_json

RECIPE = "recipe.toml"
STATUS = "status.json"
METRICS = "metrics.jsonl"
LOSS_PICTURE = "loss.png"

# What may differ when a run goes on: it changes no weight.
FREE_ON_RESUME = {"data.workers", "data.in_memory", "data.max_bad_fraction", "training.save_every", "training.keep"}


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
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def newest_finished_run(root: Path) -> Path | None:
    """The run folder under ``root``, at most two levels down, that finished last."""
    found = [path.parent for pattern in ("*/", "*/*/") for path in root.glob(pattern + STATUS)]
    finished = [run for run in found if read_status(run).get("state") == "finished"]
    return max(finished, key=lambda run: (run / STATUS).stat().st_mtime, default=None)


class MetricsLog:
    """``metrics.jsonl``: one row a training step, one an evaluation, each on disk as soon as it is known."""

    def __init__(self, out: Path, last_step: int) -> None:
        """Open the log, without rows after ``last_step``: they belong to steps that will be taken again."""
        self.path = out / METRICS
        self.rows = [row for row in read_metrics(out) if row["step"] <= last_step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)
        with explain_os_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation after ``step`` steps is in the log."""
        return any(row["step"] == step and is_evaluation(row) for row in reversed(self.rows))


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line that a kill cut short is dropped."""
    try:
        lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number + 1 < len(lines):
                raise UsageError(
                    f"{out / METRICS}, line {number + 1}: not JSON; move the file away to go on"
                ) from error
    return rows


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row is an evaluation's."""
    return any(key.startswith("val_") for key in row)


def draw_losses(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Draw ``loss.png``: contrastive and caption loss over steps, training and validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("contrastive_loss", "caption_loss"), strict=True):
        for key, style in ((name, {"color": "0.7", "lw": 0.8}), (f"val_{name}", {"color": "tab:blue", "marker": "."})):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label="validation" if key.startswith("val") else "training", **style
                )
        axes.set(title=name.replace("_", " "), xlabel="step", ylabel="nats")
        axes.grid(alpha=0.3)
        axes.legend()
    temporary = out / f".{LOSS_PICTURE}"
    with explain_os_errors(out / LOSS_PICTURE):
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(out / LOSS_PICTURE)
