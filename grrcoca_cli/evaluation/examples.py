"""What a model made of each example of a split, kept on disk: losses and scores come back from it without a model."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.measures import Floats, Measure, mean_of, ratio
from grrcoca_cli.evaluation.retrieval import Ranks

LOSSES = ("contrastive_loss", "ppl_token", "coca_loss")
"""The three that the paper reports."""

HIGHER_IS_BETTER = (
    *(f"{direction}_r{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "cider_d",
)
METRICS = (*LOSSES, "caption_loss", "bits_per_byte", *HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Examples:
    """N examples in the order they were read.

    Attributes:
        keys: Of the samples.
        parts: (N, 3): summed NLL in nats, target tokens, UTF-8 bytes of the caption.
        contrastive: Contrastive loss of each pair among its evaluation batch (N,), NaN in a last short one, which has
            no part in any mean.
        ranks: Retrieval among all N.
        cider: CIDEr-D of the model's caption (N,), NaN where it is not defined.
        captions: What the model said.
    """

    keys: list[str]
    parts: Floats
    contrastive: Floats
    ranks: Ranks
    cider: Floats
    captions: list[str]

    def dump(self) -> str:
        """JSON Lines, an example a row; `read_examples` gives the same numbers back to the last bit."""
        columns = zip(
            self.keys,
            self.parts.tolist(),
            self.contrastive.tolist(),
            self.ranks.image_to_text.tolist(),
            self.ranks.text_to_image.tolist(),
            self.cider.tolist(),
            self.captions,
            strict=True,
        )
        rows = (
            {
                **{"key": key, "nll": nll, "tokens": tokens, "bytes": size, "contrastive": _or_none(pair)},
                **{"image_to_text_rank": to_text, "text_to_image_rank": to_image},
                **{"cider_d": _or_none(cider), "caption": caption},
            }
            for key, (nll, tokens, size), pair, to_text, to_image, cider, caption in columns
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_examples(path: Path) -> Examples:
    """What `Examples.dump` wrote.

    Raises:
        UsageError: There is no such file, or it holds something else.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return Examples(
            keys=[row["key"] for row in rows],
            parts=np.array([[row["nll"], row["tokens"], row["bytes"]] for row in rows], np.float64).reshape(-1, 3),
            contrastive=_floats(rows, "contrastive"),
            ranks=Ranks(
                np.array([row["image_to_text_rank"] for row in rows], np.int64),
                np.array([row["text_to_image_rank"] for row in rows], np.int64),
            ),
            cider=_floats(rows, "cider_d"),
            captions=[row["caption"] for row in rows],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a file of examples: remove its folder's eval.json to measure again") from error


def measures_of(runs: Sequence[Examples], contrastive_weight: float, caption_weight: float) -> list[Measure]:
    """Every metric over the examples of one run, or of several runs of one arm, summed example by example.

    A weight of 0 leaves out what the run was not trained for: the contrastive loss and retrieval, or the perplexity
    and CIDEr-D; and the CoCa loss in either case.

    Args:
        runs: Of the same examples in the same order.
        contrastive_weight, caption_weight: Of the CoCa loss.
    """
    assert all(run.keys == runs[0].keys for run in runs)
    found: list[Measure] = []
    counted = np.isfinite(runs[0].contrastive)  # the same in all runs: a short batch is of the data
    pairs = np.stack([sum(np.where(counted, run.contrastive, 0) for run in runs), counted * len(runs)], axis=1)
    nll, tokens, size = np.sum([run.parts for run in runs], axis=0).T
    words = np.stack([nll, tokens], axis=1)

    def coca(sums: Floats) -> Floats:
        return contrastive_weight * ratio(sums[..., :2]) + caption_weight * ratio(sums[..., 2:])

    def perplexity(sums: Floats) -> Floats:
        return np.exp(np.minimum(ratio(sums), 700))

    if contrastive_weight:
        found.append(Measure("contrastive_loss", pairs, ratio, higher_is_better=False))
    if caption_weight:
        bits = np.stack([nll / math.log(2), size], axis=1)
        found.append(Measure("ppl_token", words, perplexity, higher_is_better=False))
        found.append(Measure("caption_loss", words, ratio, higher_is_better=False))
        found.append(Measure("bits_per_byte", bits, ratio, higher_is_better=False))
    if contrastive_weight and caption_weight:
        found.append(Measure("coca_loss", np.concatenate([pairs, words], axis=1), coca, higher_is_better=False))
    if contrastive_weight:
        for direction in ("image_to_text", "text_to_image"):
            ranks = [getattr(run.ranks, direction) for run in runs]
            found += [mean_of(f"{direction}_r{k}", np.mean([rank <= k for rank in ranks], axis=0)) for k in (1, 5, 10)]
    if caption_weight and all(np.isfinite(run.cider).all() for run in runs):
        found.append(mean_of("cider_d", np.mean([run.cider for run in runs], axis=0)))
    return sorted(found, key=lambda measure: METRICS.index(measure.name))


def batch_labels(examples: Examples, group: int) -> list[str]:
    """The evaluation batch of each example: pairs of one batch compete, so a test must keep them together."""
    return [str(place // group) for place in range(len(examples.keys))]


def _floats(rows: Sequence[dict[str, object]], name: str) -> NDArray[np.float64]:
    return np.array([math.nan if row[name] is None else row[name] for row in rows], np.float64)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
