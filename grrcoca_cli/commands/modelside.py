"""What a checkpoint makes of a data set: each picture read and encoded once, measured and captioned."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from grrcoca_cli.console import Progress
from grrcoca_cli.data.batches import Batch, BatchReader, evaluation_batches
from grrcoca_cli.evaluation.calibration import expected_calibration_error
from grrcoca_cli.evaluation.judge import ModelSide
from grrcoca_cli.evaluation.measures import Floats, Measure, ratio
from grrcoca_cli.evaluation.retrieval import retrieval
from grrcoca_cli.training.device import used_precision
from grrcoca_cli.training.evaluate import Measurements, measure
from grrcoca_cli.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch import Tensor

    from grrcoca_cli.captioner import Caption, Captioner
    from grrcoca_cli.config import Recipe, TrainingConfig
    from grrcoca_cli.data.base import CaptionDataset

BATCH = 16


@dataclass(frozen=True)
class ModelRun:
    """A model's measurements, and its best caption of each picture by key."""

    measurements: Measurements
    captions: dict[str, Caption]
    scored: dict[str, str]  # the reference that the losses are of, by key
    precision: str  # of the losses: bf16 or float32


def run_model(captioner: Captioner, dataset: CaptionDataset, recipe: Recipe, ranks: Ranks = ALONE) -> ModelRun:
    """Read every picture of a set once; measure and caption it. Several processes share the set; all get the whole."""
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
    own: list[tuple[int, list[str], list[Caption], list[str]]] = []
    progress = Progress("evaluating", len(dataset), "images")

    def caption(number: int, batch: Batch, memory: Tensor) -> None:
        found = captioner.caption_memory(memory, recipe.generation, seed_offset=number * BATCH)
        own.append((number, batch.keys, [best[0] for best in found], batch.captions))
        progress.show(min((number + 1) * BATCH, len(dataset)))

    batches = evaluation_batches(reader, BATCH, recipe.data.workers, ranks.share)
    precision = recipe.training.precision
    with progress:
        measurements = measure(
            checkpoint.model, batches, checkpoint.tokenizer, precision, captioner.device, on_batch=caption, ranks=ranks
        )
    assert measurements is not None  # nobody asked it to stop
    captions: dict[str, Caption] = {}
    scored: dict[str, str] = {}
    for _, keys, found, texts in sorted((each for part in ranks.gather(own) for each in part), key=itemgetter(0)):
        captions.update(zip(keys, found, strict=True))
        scored.update(zip(keys, texts, strict=True))
    return ModelRun(measurements, captions, scored, used_precision(captioner.device, precision))


def describe_model(run: ModelRun, recipe: Recipe) -> ModelSide:
    """Losses, perplexities, retrieval and calibration, in the form that intervals are made of."""
    found = run.measurements
    report = found.report(recipe.training, recipe.eval.batch_size)
    ranks = retrieval(found.image_features.numpy(), found.text_features.numpy(), list(run.scored.values()))
    notes = [
        f"contrastive loss among {report.contrastive_batch} pairs; {report.left_out} of a last short batch left out",
        "perplexity and losses count the end token; the first caption of each sample is the one scored",
        f"retrieval among all {len(found.keys)} pairs, median ranks; equal scores count against the model, equal "
        "captions for it; confidence with CIDEr is the rank correlation of a caption's log-probability with its score",
    ]
    distinct = len(set(run.scored.values()))
    if distinct < 2:
        notes.append("fewer than two distinct captions: no contrastive loss and no retrieval")
    if report.truncated:
        notes.append(f"captions longer than the context, measured as far as they fit: {report.truncated}")
    if found.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.skipped.most_common())
        notes.append(f"unreadable pictures, left out: {kinds}")
    return ModelSide(
        ids=found.keys,
        measures=[
            *_losses(found, report.contrastive_batch if distinct > 1 else 1, recipe.training),
            *(ranks.measures() if distinct > 1 else []),
        ],
        values={
            "image_to_text_median_rank": ranks.image_to_text_median if distinct > 1 else None,
            "text_to_image_median_rank": ranks.text_to_image_median if distinct > 1 else None,
            "ece": expected_calibration_error(found.confidence, found.correct).error,
        },
        logprobs={key: caption.logprob for key, caption in run.captions.items()},
        notes=notes,
        signature=_signature(recipe, report.contrastive_batch, run.precision),
    )


def _signature(recipe: Recipe, contrastive_batch: int, precision: str) -> str:
    """What the model's numbers and its captions depend on beside its weights."""
    decoding = json.dumps(recipe.generation.model_dump(), sort_keys=True).encode()
    weights = f"{recipe.training.contrastive_weight:g},{recipe.training.caption_weight:g}"
    generation = hashlib.sha256(decoding).hexdigest()[:8]
    return f"batch:{contrastive_batch}|weights:{weights}|precision:{precision}|gen:{generation}"


def _losses(found: Measurements, group: int, training: TrainingConfig) -> list[Measure]:
    contrastive = np.zeros((len(found.keys), 2))  # those of a last short group have no part in it
    if group > 1:
        pairs = found.pair_losses(group)
        contrastive[: len(pairs)] = np.stack([pairs, np.ones(len(pairs))], axis=1)
    nll, tokens, words, size = found.parts.T

    def coca(sums: Floats) -> Floats:
        return training.contrastive_weight * ratio(sums[..., :2]) + training.caption_weight * ratio(sums[..., 2:])

    def exponential(sums: Floats) -> Floats:
        return np.exp(np.minimum(ratio(sums), 700))

    def over(denominator: Floats) -> Floats:
        return np.stack([nll, denominator], axis=1)

    both = np.concatenate([contrastive, over(tokens)], axis=1)
    bits = np.stack([nll / math.log(2), size], axis=1)
    return [
        Measure("contrastive_loss", contrastive, ratio, higher_is_better=False),
        Measure("caption_loss", over(tokens), ratio, higher_is_better=False),
        Measure("coca_loss", both, coca, higher_is_better=False),
        Measure("ppl_token", over(tokens), exponential, higher_is_better=False),
        Measure("ppl_word", over(words), exponential, higher_is_better=False),
        Measure("bits_per_byte", bits, ratio, higher_is_better=False),
    ]
