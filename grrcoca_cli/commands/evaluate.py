"""``grrcoca eval``: losses and caption scores of a checkpoint, or the scores of anybody's captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grrcoca_cli.config import EvalConfig, GenerationConfig, TrainingConfig, apply_settings, build_recipe
from grrcoca_cli.console import ProgressLine, say
from grrcoca_cli.errors import ExitCode, UnreadableImage, UsageError
from grrcoca_cli.evaluation import Scores, align, read_predictions, read_references, score
from grrcoca_cli.files import write_atomically

if TYPE_CHECKING:
    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.data.base import CaptionDataset
    from grrcoca_cli.training.evaluate import LossReport

SCHEMA = 1
BATCH = 16
LABELS = {
    "contrastive_loss": "contrastive loss",
    "caption_loss": "caption loss",
    "coca_loss": "CoCa loss",
    "ppl_token": "perplexity (token)",
    "ppl_word": "perplexity (word)",
    "bits_per_byte": "bits per byte",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
}


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    checkpoint: Path | None
    dataset: str
    data: str
    split: str
    predictions: Path | None
    references: Path | None
    missing: str
    out: Path | None
    settings: Sequence[str]
    device: str
    as_json: bool


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: Values by name, losses first; None where a metric is not defined on the set.
        notes: What a reader must know to read them.
        samples: Images scored.
        signature: How the caption scores came about.
    """

    metrics: dict[str, float | None]
    notes: tuple[str, ...]
    samples: int
    signature: str

    def as_json(self) -> dict[str, Any]:
        """The result under its schema."""
        metrics = {name: {"value": value} for name, value in self.metrics.items()}
        return {
            "schema": SCHEMA,
            "metrics": metrics,
            "samples": self.samples,
            "notes": list(self.notes),
            "signature": self.signature,
        }


def evaluate(options: Options) -> ExitCode:
    """Measure and print; gives the exit code.

    Raises:
        UsageError: The flags name neither a checkpoint with data nor predictions with references.
    """
    if options.predictions or options.references:
        result, code = _score_files(options), ExitCode.OK
    else:
        result, code = _measure_checkpoint(options)
    if options.as_json:
        print(json.dumps(result.as_json()))
    else:
        show_table(result)
    return code


def _score_files(options: Options) -> Evaluation:
    if not (options.predictions and options.references):
        raise UsageError("scoring captions takes both --predictions FILE and --references FILE")
    if options.checkpoint or options.data:
        raise UsageError("give either --predictions and --references, or --checkpoint and --data, not both")
    if options.missing not in ("error", "zero"):
        raise UsageError(f"--missing {options.missing}: give error or zero")
    notes: list[str] = []
    references = read_references(options.references)
    predictions = align(read_predictions(options.predictions, notes=notes), references, notes=notes)
    scores = score(predictions, references, missing="zero" if options.missing == "zero" else "error")
    return _join({}, scores, notes)


def _measure_checkpoint(options: Options) -> tuple[Evaluation, ExitCode]:
    if not (options.checkpoint and options.data):
        raise UsageError(
            "eval takes --checkpoint DIR --dataset NAME --data DIR, or --predictions FILE --references FILE"
        )
    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.commands.datasets import open_split

    captioner = Captioner.load(options.checkpoint, options.device)
    config = captioner.checkpoint.config
    tables = apply_settings({"generation": config.generation.model_dump()}, options.settings)
    tables["data"] = {"dataset": options.dataset, "path": options.data, **tables.get("data", {})}
    if other := sorted(set(tables) - {"data", "training", "eval", "generation"}):
        raise UsageError(f"--set {other[0]}.…: comes from the checkpoint")
    recipe = build_recipe(tables, "eval")
    if recipe.data.dataset not in ("folder", "roco", "shards", "phantoms"):
        raise UsageError(f"--dataset {options.dataset}: see `grrcoca ls datasets`")
    dataset = open_split(recipe.data, options.split)
    if len(dataset) == 0:
        raise UsageError(f"the {options.split} split of {options.data} has no sample with picture and caption")
    say(f"evaluating {captioner.checkpoint.folder} on {len(dataset)} samples of {options.data}, {options.split}")

    losses = measure_losses(captioner, dataset, recipe.training, recipe.eval)
    predictions, unread = caption_dataset(captioner, dataset, recipe.generation)
    if options.out:
        lines = (json.dumps({"id": key, "caption": text}, ensure_ascii=False) for key, text in predictions.items())
        write_atomically(options.out, "".join(line + "\n" for line in lines))
    result = judge(dataset, predictions, losses)
    return result, ExitCode.SOME_INPUTS_FAILED if unread else ExitCode.OK


def judge(dataset: CaptionDataset, predictions: dict[str, str], losses: LossReport) -> Evaluation:
    """Losses and caption scores together; samples without a prediction (unreadable pictures) are left out."""
    samples = [dataset.peek(index) for index in range(len(dataset))]
    references = {sample.key: list(sample.captions) for sample in samples}
    if not predictions:
        raise UnreadableImage("unreadable", "none of the pictures of this split can be read")
    scores = score(predictions, references, missing="skip")
    notes = [
        f"contrastive loss among {losses.contrastive_batch} pairs; {losses.left_out} of a last short batch left out",
        "perplexity and losses count the end token; the first caption of each sample is the one scored",
    ]
    if losses.truncated:
        notes.append(f"{losses.truncated} captions are longer than the context; their losses are of what fits")
    if losses.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in losses.skipped.most_common())
        notes.append(f"unreadable pictures, left out: {kinds}")
    return _join({name: getattr(losses, name) for name in losses.METRICS}, scores, notes)


def measure_losses(
    captioner: Captioner, dataset: CaptionDataset, training: TrainingConfig, evaluation: EvalConfig
) -> LossReport:
    """The model-side numbers of a data set, pictures read by the captioner's reader."""
    from grrcoca_cli.data.batches import BatchReader, evaluation_batches
    from grrcoca_cli.training.evaluate import evaluate_losses

    checkpoint = captioner.checkpoint
    contract = checkpoint.config.image
    reader = BatchReader(
        dataset=dataset,
        read_image=captioner.read,
        tokenizer=checkpoint.tokenizer,
        image_size=contract.size,
        context_length=checkpoint.config.model.context_length,
        fit=contract.fit,
        mean=contract.mean,
        std=contract.std,
    )
    batches = evaluation_batches(reader, BATCH)
    group = evaluation.batch_size
    report = evaluate_losses(checkpoint.model, batches, checkpoint.tokenizer, training, group, captioner.device)
    assert report is not None  # nobody asked it to stop
    return report


def caption_dataset(
    captioner: Captioner, dataset: CaptionDataset, settings: GenerationConfig
) -> tuple[dict[str, str], int]:
    """The best caption of each sample by key, and how many pictures could not be read."""
    captions: dict[str, str] = {}
    unread = 0
    progress = ProgressLine()
    for start in range(0, len(dataset), BATCH):
        keys, pixels = [], []
        for index in range(start, min(start + BATCH, len(dataset))):
            sample = dataset[index]
            try:
                pixels.append(captioner.read(sample.image))
            except UnreadableImage as error:
                say(f"{sample.key}: {error}")
                unread += 1
                continue
            keys.append(sample.key)
        if pixels:
            found = captioner.caption_pixels(pixels, settings, seed_offset=start)
            captions |= {key: best[0].text for key, best in zip(keys, found, strict=True)}
        progress.show(f"captioned {len(captions)}/{len(dataset)}")
    progress.close()
    return captions, unread


def _join(losses: dict[str, float], scores: Scores, notes: Sequence[str]) -> Evaluation:
    return Evaluation({**losses, **scores.metrics}, (*notes, *scores.notes), scores.images, scores.signature)


def show_table(result: Evaluation) -> None:
    """Print the metrics as a table on stdout, notes and signature below."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=f"{result.samples} images", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in result.metrics.items():
        table.add_row(LABELS[name], "-" if value is None else f"{value:.4f}")
    console = Console(soft_wrap=True)
    console.print(table)
    for note in result.notes:
        console.print(f"· {note}", markup=False, highlight=False)
    console.print(result.signature, style="dim", markup=False, highlight=False)
