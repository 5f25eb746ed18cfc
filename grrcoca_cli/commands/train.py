"""``grrcoca pretrain`` and ``grrcoca finetune``: first weights, data and recipe for the one loop."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grrcoca_cli import __version__
from grrcoca_cli.config import Recipe, apply_settings, build_recipe, read_recipe, recipe_names
from grrcoca_cli.console import duration, print_result, say
from grrcoca_cli.data.shard_names import is_remote, is_shards, names_a_file
from grrcoca_cli.errors import UnreadableImage, UsageError
from grrcoca_cli.files import make_folder, sha256_of, write_atomically
from grrcoca_cli.training.checkpoint import (
    BEST,
    FORMAT_VERSION,
    CheckpointConfig,
    ImageContract,
    checkpoint_hash,
    find_checkpoint,
    read_config,
)
from grrcoca_cli.training.loggers import without_missing_loggers
from grrcoca_cli.training.runfolder import is_evaluation, read_metrics

if TYPE_CHECKING:
    import torch

    from grrcoca_cli.commands.datasets import OpenedData
    from grrcoca_cli.data.base import CaptionDataset
    from grrcoca_cli.data.tokenizer import CaptionTokenizer
    from grrcoca_cli.model.coca import CoCa
    from grrcoca_cli.training.loop import Run
    from grrcoca_cli.training.ranks import Ranks

TOKENIZER_CAPTIONS = 2_000_000
"""Most captions a tokenizer is trained on: more change little and take hours."""

REMOTE_CAPTIONS = 200_000
"""The same where captions come in shards that have to be fetched: twenty shards of CC12M."""

HOW_TO_GET_CC12M = """\
To get them, download cc12m.tsv (github.com/google-research-datasets/conceptual-12m), then
  pip install img2dataset
  grrcoca prepare cc12m cc12m.tsv --out shards"""


@dataclass(frozen=True)
class Options:
    """The flags that both commands share."""

    out: Path
    recipe: str
    settings: Sequence[str] = ()
    data: str = ""
    device: str = "auto"
    resume: str = "auto"
    dry_run: bool = False
    dataset: str = ""
    as_json: bool = False


def show_result(options: Options, last: Path | None) -> None:
    """Print the last checkpoint of a finished run: its path, or with ``--json`` what is known of it."""
    if last is None:  # a dry run, which has printed what it found
        return
    if not options.as_json:
        print_result(str(last))
        return
    evaluation = next((row for row in reversed(read_metrics(options.out)) if is_evaluation(row)), None)
    best = options.out / BEST
    result = {
        "schema": 1,
        "run": str(options.out),
        "checkpoint": str(last),
        "step": read_config(last).step,
        "best_checkpoint": str(best) if best.is_dir() else None,
        "evaluation": evaluation and {name: value if isfinite(value) else None for name, value in evaluation.items()},
    }
    print_result(json.dumps(result))


def pretrain(options: Options) -> Path | None:
    """Train from first values; gives the last checkpoint, or None after a dry run."""
    recipe = resolve_recipe(options)
    if recipe.data.dataset == "shards" and not (is_remote(recipe.data.path) or names_a_file(recipe.data.path)):
        raise UsageError(f"no shard matches {recipe.data.path!r}: give --data.\n{HOW_TO_GET_CC12M}")
    _check_resume(options.resume)
    recipe = without_missing_loggers(recipe, options.out)
    with _session(recipe, options) as session:
        return _run(*_new_model(recipe, session), options, session)


def measure_step(options: Options) -> float:
    """Median seconds of a step of a pretraining on its data; nothing is kept."""
    from grrcoca_cli.training.loop import seconds_a_step

    recipe = resolve_recipe(options)
    with _session(recipe, options) as session:
        return seconds_a_step(_open_run(*_new_model(recipe, session), options, session))


def _new_model(recipe: Recipe, session: _Session) -> tuple[Recipe, CoCa]:
    """The recipe with the tokenizer's vocabulary, and its model at first values."""
    import torch

    from grrcoca_cli.model.coca import CoCa

    config = recipe.model.model_copy(update={"vocab_size": session.tokenizer.vocab_size})
    torch.manual_seed(recipe.training.seed)
    return recipe.model_copy(update={"model": config}), CoCa(config).to(session.device)


def finetune(options: Options, checkpoint: Path | None) -> Path | None:
    """Train on from a checkpoint; gives the last checkpoint, or None after a dry run."""
    _check_resume(options.resume)
    if checkpoint is None:
        raise UsageError("fine-tuning needs --checkpoint: a run folder of `grrcoca pretrain`, or a checkpoint in it")
    start = find_checkpoint(checkpoint)
    recipe = without_missing_loggers(resolve_recipe(options, start), options.out)
    with _session(recipe, options, start) as session:
        from grrcoca_cli.training.checkpoint import load_checkpoint

        return _run(recipe, load_checkpoint(start, session.device).model, options, session)


def finetune_recipe(dataset: str) -> str:
    """The packaged recipe that ``finetune --dataset`` starts from where ``--recipe`` is not given."""
    name = f"finetune_{dataset}"
    return name if name in recipe_names() else "finetune_folder"


def resolve_recipe(options: Options, checkpoint: Path | None = None) -> Recipe:
    """The recipe with ``--data`` and ``--set`` put in; with a ``checkpoint``, with its model.

    Raises:
        UsageError: A name or value is wrong, or the recipe changes a checkpoint's architecture.
    """
    tables = read_recipe(options.recipe)
    data: dict[str, Any] = dict(tables.get("data", {}))
    if options.dataset:
        data["dataset"] = options.dataset
    if options.data:
        data["path"] = options.data
        if data.get("dataset") == "phantoms" and not options.dataset:
            data["dataset"] = "shards" if is_shards(options.data) else "folder"
    tables = _with_image_hash(apply_settings({**tables, "data": data}, options.settings))
    if checkpoint is not None:
        trained = read_config(checkpoint)
        free = {"patch_dropout", "gradient_checkpointing"}
        if bound := sorted(set(tables.get("model", {})) - free):
            raise UsageError(f"model.{bound[0]} comes from the checkpoint when fine-tuning: leave it out")
        training = {**tables.get("training", {}), "start": checkpoint_hash(checkpoint)}
        tables = {**tables, "model": trained.model.model_dump() | tables.get("model", {}), "training": training}
    return build_recipe(tables, f"recipe {options.recipe}")


def _with_image_hash(tables: dict[str, Any]) -> dict[str, Any]:
    """Name the file of image weights by its content, too: a run must not go on from another of the same name."""
    path = tables.get("finetune", {}).get("image_weights")
    if not path:
        return tables
    if not Path(path).is_file():
        raise UsageError(f"no image weights at {path}: there is no such file")
    return {**tables, "finetune": {**tables["finetune"], "image_hash": sha256_of(Path(path))[:12]}}


def _check_resume(resume: str) -> None:
    if resume not in ("auto", "never", "force"):
        raise UsageError(f"--resume {resume}: give auto (continue what --out holds, or start), never or force")


@dataclass(frozen=True)
class _Session:
    """What a run stands on: device, processes, data, tokenizer."""

    device: torch.device
    ranks: Ranks
    opened: OpenedData
    tokenizer: CaptionTokenizer


@contextmanager
def _session(recipe: Recipe, options: Options, checkpoint: Path | None = None) -> Iterator[_Session]:
    """Meet the other processes and open the data; the first process draws and trains what is not there.

    What a dry run has to draw goes into a folder that does not stay.
    """
    from grrcoca_cli.commands.datasets import open_data
    from grrcoca_cli.training.device import choose_device
    from grrcoca_cli.training.ranks import join_ranks

    device = choose_device(options.device)
    with join_ranks(recipe.distributed.timeout) as ranks, tempfile.TemporaryDirectory() as scratch:
        with ranks.first_goes_first():
            opened = open_data(recipe.data, Path(scratch) if options.dry_run else options.out)
            tokenizer = _tokenizer(recipe, opened.train, options, checkpoint)
        yield _Session(device, ranks, opened, tokenizer)


def _tokenizer(
    recipe: Recipe, train: CaptionDataset, options: Options, checkpoint: Path | None = None
) -> CaptionTokenizer:
    """The checkpoint's or the recipe's tokenizer, the one an earlier start of this run trained, or a new one."""
    from grrcoca_cli.data.tokenizer import CaptionTokenizer

    kept = options.out / "tokenizer.json"
    if checkpoint is not None:
        return CaptionTokenizer.load(checkpoint / "tokenizer.json")
    if recipe.data.tokenizer:
        return CaptionTokenizer.load(Path(recipe.data.tokenizer))
    if kept.exists():
        return CaptionTokenizer.load(kept)
    say("training the tokenizer on the training captions")
    tokenizer = CaptionTokenizer.train(_captions(train, recipe.training.seed), recipe.model.vocab_size)
    if not options.dry_run:
        make_folder(options.out)
        write_atomically(kept, tokenizer.to_json())  # half of it would stop every later start
    return tokenizer


def _captions(train: CaptionDataset, seed: int) -> Iterator[str]:
    import numpy as np

    from grrcoca_cli.data.base import OrderedDataset

    indices: Sequence[int] = range(len(train))
    order = train.order(np.random.RandomState(seed)) if isinstance(train, OrderedDataset) else None
    if order is not None:  # each shard would have to be fetched: a few of them must do
        indices = order[:REMOTE_CAPTIONS].tolist()
    elif len(train) > TOKENIZER_CAPTIONS:
        indices = sorted(random.Random(seed).sample(indices, TOKENIZER_CAPTIONS))
    for index in indices:
        with contextlib.suppress(UnreadableImage):  # a shard that is no more what it was; training counts it
            yield from train.peek(index).captions


def _run(recipe: Recipe, model: CoCa, options: Options, session: _Session) -> Path | None:
    from grrcoca_cli.commands.datasets import describe, describe_cut_captions
    from grrcoca_cli.training.loop import seconds_a_step, train
    from grrcoca_cli.training.optimizer import freeze

    data, training, opened = recipe.data, recipe.training, session.opened
    tell = print_result if options.dry_run and not options.as_json else say
    for line in describe(opened, data, overlaps=options.dry_run):
        tell(line)
    if note := describe_cut_captions(opened.train, session.tokenizer, recipe.model.context_length):
        say(note)
    _take_image_weights(recipe, model)
    freeze(model, recipe.finetune.freeze)
    if training.accumulation > 1 and training.contrastive_weight and training.contrastive_batch == "micro":
        micro = training.batch_size // training.accumulation
        say(
            f'note: with training.contrastive_batch = "micro" a pair competes with the {micro - 1} others '
            f"of its micro-batch, not with the {training.batch_size - 1} of the whole batch"
        )
    run = _open_run(recipe, model, options, session)
    if options.dry_run:
        _report_dry_run(run, opened, seconds_a_step(run), as_json=options.as_json)
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    processes = f", {session.ranks.size} processes, {recipe.distributed.strategy}" if session.ranks.size > 1 else ""
    say(
        f"model: {recipe.model.variant_name}, {recipe.model.size_name}, {parameters:,} parameters; "
        f"on {session.device}{processes}"
    )
    return train(run, options.resume)


def _open_run(recipe: Recipe, model: CoCa, options: Options, session: _Session) -> Run:
    from grrcoca_cli.commands.datasets import augmentation, image_reader
    from grrcoca_cli.training.loop import Run

    data, opened = recipe.data, session.opened
    contract = ImageContract(
        size=recipe.model.image_size, fit=data.fit, mean=data.mean, std=data.std, window=data.window
    )
    config = CheckpointConfig(
        format_version=FORMAT_VERSION,
        grrcoca_version=__version__,
        model=recipe.model,
        image=contract,
        generation=recipe.generation,
        step=0,
        trained_on=f"{data.dataset} data" + (" (synthetic)" if data.dataset == "phantoms" else ""),
    )
    return Run(
        recipe=recipe,
        out=options.out,
        model=model,
        tokenizer=session.tokenizer,
        train=opened.train,
        validation=opened.validation,
        reader=image_reader(data, recipe.model.image_size),
        augmentation=augmentation(data),
        config=config,
        device=session.device,
        ranks=session.ranks,
    )


def _take_image_weights(recipe: Recipe, model: CoCa) -> None:
    if recipe.finetune.image_weights:
        from grrcoca_cli.training.image_weights import load_image_weights

        for line in load_image_weights(model, Path(recipe.finetune.image_weights)).lines():
            say(line)


def _report_dry_run(run: Run, opened: OpenedData, seconds: float, *, as_json: bool) -> None:
    """Print what a run would do, and what it would take, after it was tried for a few steps."""
    from grrcoca_cli.training.estimates import estimate

    recipe = run.recipe
    found = estimate(recipe, len(run.train), _mean_tokens(run), run.ranks.size, run.device)
    left = seconds * recipe.training.steps
    say("dry run: nothing was kept")
    if not as_json:
        print_result(f"model: {recipe.model.variant_name}, {recipe.model.size_name}")
        for line in found.lines():
            print_result(line)
        print_result(f"time: {seconds:.3g} s a step, measured: {duration(left)} without evaluations")
        return
    summary = {
        "schema": 1,
        "train": len(run.train),
        "validation": len(run.validation),
        "skipped": dict(opened.skipped),
        "parameters": sum(found.parameters.values()),
        "epochs": round(found.epochs, 2),
        "estimate": found.as_json(),
        "seconds_per_step": round(seconds, 4),
        "seconds_to_end": round(left, 1),
    }
    print_result(json.dumps(summary))


def _mean_tokens(run: Run) -> float:
    """Tokens of a training caption as the model gets it, over up to a thousand samples spread over the set."""
    length = run.recipe.model.context_length
    indices = range(0, len(run.train), max(1, len(run.train) // 1000))
    counts = [min(run.tokenizer.count(text), length) for i in indices for text in run.train.peek(i).captions]
    return sum(counts) / len(counts)
