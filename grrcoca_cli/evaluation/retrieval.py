"""Retrieval within a fixed gallery: how high the right caption stands for an image, and an image for its caption."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.evaluation.measures import Measure, mean_of

RECALL_AT = (1, 5, 10)

_CHUNK = 16_000_000  # similarities held at once, 64 MB

_TIE = 1e-6
"""Cosines that differ by less are equal: float32 products of the very same vectors do, by up to 3e-7."""


@dataclass(frozen=True)
class Ranks:
    """Rank of the best right answer, from 1, of each of N queries in both directions.

    Equal captions are one answer of the gallery, right for every image that has it; for a caption, every image that
    has it is right. A wrong answer that scores the same as the best right one stands before it.

    Attributes:
        image_to_text: (N,), among the distinct captions.
        text_to_image: (N,), among the N images.
    """

    image_to_text: NDArray[np.int64]
    text_to_image: NDArray[np.int64]

    @property
    def image_to_text_median(self) -> float:
        """Median rank of the caption; NaN without pairs."""
        return _median(self.image_to_text)

    @property
    def text_to_image_median(self) -> float:
        """Median rank of the image; NaN without pairs."""
        return _median(self.text_to_image)

    def measures(self) -> list[Measure]:
        """Recall at 1, 5 and 10 in both directions, in [0, 1]: ``image_to_text_r1`` to ``text_to_image_r10``."""
        return [
            mean_of(f"{direction}_r{k}", ranks <= k)
            for direction, ranks in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image))
            for k in RECALL_AT
        ]


def retrieval(
    image_features: NDArray[np.float32], text_features: NDArray[np.float32], captions: Sequence[Hashable]
) -> Ranks:
    """Ranks of the right answers by dot product.

    Args:
        image_features, text_features: Unit vectors (N, E), pair by pair. What is not finite counts against the model:
            as a right answer it is last, as a wrong one it stands before the right one.
        captions: What makes two texts equal, (N,).
    """
    labels: dict[Hashable, int] = {}
    label = np.array([labels.setdefault(caption, len(labels)) for caption in captions], np.int64)
    first = np.unique(label, return_index=True)[1]
    image_to_text = _ranks(image_features, text_features[first], label, np.arange(len(first)))
    return Ranks(image_to_text, _ranks(text_features, image_features, label, label))


def _median(ranks: NDArray[np.int64]) -> float:
    return float(np.median(ranks)) if len(ranks) else float("nan")


def _ranks(
    queries: NDArray[np.float32], answers: NDArray[np.float32], wanted: NDArray[np.int64], given: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rank of the best answer whose label is the query's, wrong ones of equal score before it."""
    ranks = np.empty(len(queries), np.int64)
    step = max(1, _CHUNK // max(len(answers), 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        with np.errstate(invalid="ignore"):
            scores = queries[part] @ answers.T  # (step, answers)
        right, usable = wanted[part, None] == given, np.isfinite(scores)
        best = np.where(right & usable, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[part] = 1 + (~(usable & (scores < best - _TIE)) & ~right).sum(axis=1)
    return ranks
