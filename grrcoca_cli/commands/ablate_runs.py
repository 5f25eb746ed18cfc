"""One run of a study: pretrain, perhaps fine-tune, measure; each stage kept so that it is never done twice.

Also the program of a worker process: ``python -m grrcoca_cli.commands.ablate_runs JOB.json DEVICE``.
"""

import hashlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from grrcoca_cli.commands.ablate_data import Judged
from grrcoca_cli.config import Recipe, build_recipe, read_recipe
from grrcoca_cli.console import say
from grrcoca_cli.errors import ExitCode, GrrcocaError, NonFiniteLoss, RunDiffers, UsageError
from grrcoca_cli.files import make_folder, write_atomically, write_json
from grrcoca_cli.studies import Tables
from grrcoca_cli.training.runfolder import FREE_ON_RESUME, RECIPE, flatten, is_evaluation, read_metrics

SCHEMA = 1
EVAL, EXAMPLES, JOB = "eval.json", "examples.jsonl", "job.json"
ORDER_STEPS = 1000
"""Most steps whose samples the fingerprint of the data order covers."""


@dataclass(frozen=True)
class Stage:
    """A run folder to be.

    Attributes:
        name: ``pretrain`` or ``finetune``.
        tables: Its recipe.
        judged: What it is measured on; None measures nothing (a sweep goes by the validation losses).
    """

    name: str
    tables: Tables
    judged: Judged | None

    def shaping(self) -> dict[str, object]:
        """The recipe's settings without those that change no weight."""
        settings = flatten(self.tables)
        return {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}


@dataclass(frozen=True)
class Job:
    """An arm with a seed: ``folder`` holds a run folder a stage, each going on from the one before."""

    arm: str
    seed: int
    folder: Path
    stages: tuple[Stage, ...]

    @property
    def label(self) -> str:
        """For people."""
        return "/".join(self.folder.parts[-3:])

    def fingerprint(self, upto: int) -> str:
        """Of all that shapes the stage numbered ``upto``: its recipe, what it is judged on, the stages before."""
        parts = [[stage.shaping(), stage.judged and stage.judged.as_json()] for stage in self.stages[: upto + 1]]
        return hashlib.sha256(json.dumps([SCHEMA, parts], sort_keys=True).encode()).hexdigest()[:16]

    def is_done(self) -> bool:
        """Whether every stage was run and measured by this very recipe, or failed for good."""
        for place, stage in enumerate(self.stages):
            found = read_eval(self.folder / stage.name)
            if found.get("recipe") != self.fingerprint(place):
                return False
            if found["state"] == "failed":
                return True
        return True

    def write(self) -> Path:
        """Write it down for a worker process."""
        path = self.folder / JOB
        make_folder(self.folder)
        write_json(path, asdict(self) | {"folder": str(self.folder)})
        return path


def read_job(path: Path) -> Job:
    """What `Job.write` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    stages = tuple(
        Stage(stage["name"], stage["tables"], stage["judged"] and Judged(**stage["judged"])) for stage in raw["stages"]
    )
    return Job(raw["arm"], raw["seed"], Path(raw["folder"]), stages)


def read_eval(folder: Path) -> dict[str, object]:
    """The content of a run folder's ``eval.json``; empty where there is none that is whole."""
    try:
        found = json.loads((folder / EVAL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def run_job(job: Job, device: str) -> None:
    """Do what is not done yet. A loss that is not finite is an outcome, kept with its reason; other errors end it.

    Raises:
        StoppedAndSaved: A signal came; the next call goes on.
    """
    start: Path | None = None
    for place, stage in enumerate(job.stages):
        folder, mark = job.folder / stage.name, job.fingerprint(place)
        found = read_eval(folder)
        if found.get("recipe") != mark:
            found = {"schema": SCHEMA, "recipe": mark, **_run_stage(job, stage, folder, start, device)}
            write_json(folder / EVAL, found)
        if found["state"] == "failed":
            return
        start = folder


def _run_stage(job: Job, stage: Stage, folder: Path, start: Path | None, device: str) -> Mapping[str, object]:
    from grrcoca_cli.commands.train import Options, finetune, pretrain

    recipe = job.folder / f"{stage.name}.toml"
    make_folder(folder)
    write_atomically(recipe, tomli_w.dumps(stage.tables))
    options = Options(folder, str(recipe), device=device)
    try:
        if start is None:
            pretrain(options)
        else:
            finetune(options, start)
    except NonFiniteLoss as error:
        say(f"{job.label}: {error}")
        return {"state": "failed", "reason": str(error)}
    except RunDiffers as error:
        advice = "choose another --out, repeat the settings it had, or remove that folder to train it again"
        raise UsageError(error.advising(advice).replace("\n ", ";")) from error
    return _facts(folder, stage, device)


def _facts(folder: Path, stage: Stage, device: str) -> dict[str, object]:
    """What the report needs to know of a finished run; its examples are written beside."""
    import torch

    recipe = build_recipe(read_recipe(str(folder / RECIPE)), str(folder / RECIPE))
    rows = read_metrics(folder)
    steps = [row for row in rows if not is_evaluation(row)]
    seconds = statistics.median(recipe.training.batch_size / row["images_per_second"] for row in steps)
    facts: dict[str, object] = {
        "state": "measured" if stage.judged else "trained",
        "steps": int(steps[-1]["step"]),
        "early_stopping": f"patience {recipe.training.patience}" if recipe.training.patience else "none",
        "curve": [
            {
                "step": row["step"],
                **{name: row[f"val_{name}"] for name in ("contrastive_loss", "ppl_token", "coca_loss", "caption_loss")},
            }
            for row in rows
            if is_evaluation(row)
        ],
        "weights": {"contrastive": recipe.training.contrastive_weight, "caption": recipe.training.caption_weight},
        "learning_rate": recipe.training.learning_rate,
        "batch_size": recipe.training.batch_size,
        "data_order": _data_order(recipe, folder),
        "seconds_per_step": seconds,
        "threads": torch.get_num_threads(),
    }
    return facts | (_measure(folder, recipe, stage.judged, device) if stage.judged else {})


def _data_order(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Training and validation samples, and a hash of which sample came when."""
    from grrcoca_cli.commands.datasets import open_data
    from grrcoca_cli.data.batches import batch_indices

    opened, training = open_data(recipe.data, folder), recipe.training
    order = hashlib.sha256()
    for step in range(min(training.steps, ORDER_STEPS)):
        indices = batch_indices(len(opened.train), training.batch_size, training.seed, step)
        order.update(json.dumps([opened.train.key(index) for index in indices]).encode())
    return {"train": len(opened.train), "validation": len(opened.validation), "hash": order.hexdigest()[:12]}


def _measure(folder: Path, recipe: Recipe, judged: Judged, device: str) -> dict[str, object]:
    """Losses, retrieval and captions of every judged sample: written as examples, their circumstances returned."""
    import numpy as np

    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.commands.datasets import image_reader
    from grrcoca_cli.commands.modelside import run_model
    from grrcoca_cli.evaluation.examples import Examples
    from grrcoca_cli.evaluation.metrics import score
    from grrcoca_cli.evaluation.retrieval import retrieval
    from grrcoca_cli.training.costs import step_flops

    captioner = Captioner.load(folder, device)
    captioner.read = image_reader(judged.config(recipe.data), recipe.model.image_size)
    found = run_model(captioner, judged.open(recipe.data), recipe)
    measured, keys = found.measurements, found.measurements.keys
    group = min(recipe.eval.batch_size, len(keys))
    pairs = np.full(len(keys), np.nan)
    losses = measured.pair_losses(group)
    pairs[: len(losses)] = losses
    texts = [found.scored[key] for key in keys]
    scores = score(
        {key: found.captions[key].text for key in keys},
        dict(zip(keys, ([text] for text in texts), strict=True)),
        tokenizer=recipe.eval.tokenizer,
    )
    examples = Examples(
        keys=keys,
        parts=measured.parts[:, [0, 1, 3]],
        contrastive=pairs,
        ranks=retrieval(measured.image_features.numpy(), measured.text_features.numpy(), texts),
        cider=np.array([scores.per_image[key].get("cider_d", np.nan) for key in keys]),
        captions=[found.captions[key].text for key in keys],
    )
    write_atomically(folder / EXAMPLES, examples.dump())
    model = captioner.checkpoint.model
    tokens = float(measured.parts[:, 1].mean()) + 1  # the begin token is no target
    batch = recipe.training.batch_size
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_step": step_flops(model, batch, tokens, contrastive=batch // recipe.training.accumulation),
        "evaluation": {
            **{"split": judged.split, "samples": len(keys), "batch": group, "left_out": len(keys) % group},
            **{"distinct_captions": len(set(texts)), "unreadable": measured.skipped.total()},
        },
    }


def main(job: str, device: str) -> ExitCode:
    """A worker process: run one job, say why where it fails."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        run_job(read_job(Path(job)), device)
    except GrrcocaError as error:
        say(str(error))
        return error.exit_code
    return ExitCode.OK


def _end_with_parent(parent: int) -> None:
    """A study that is killed must leave no run behind that holds its folder; what was saved is whole at any time."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
