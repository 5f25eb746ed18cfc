"""ROUGE-L as the COCO caption evaluation defines it, and the ROUGE-1 of the ImageCLEF caption task."""

from collections.abc import Sequence

import numpy as np

from grrcoca_cli.evaluation.measures import Measure, mean_of
from grrcoca_cli.evaluation.ngrams import Tokens, pair_ngrams

BETA = 1.2
"""How much more recall counts than precision in ROUGE-L."""


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Measure:
    """ROUGE-L in [0, 1] (Lin, 2004): F of the best precision and the best recall over references; mean over images."""
    return mean_of("rouge_l", np.array([_rouge_l(*each) for each in zip(candidates, references, strict=True)]))


def _rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    if not candidate:
        return 0.0
    common = common_subsequences(candidate, references)
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0


def common_subsequences(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    """Length of the longest common subsequence with each reference, a row of the table in a few operations on integers.

    Bit i of ``row`` is 0 where the table's row steps up at candidate token i (Hyyrö, 2004).
    """
    places: dict[str, int] = {}
    for place, token in enumerate(candidate):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(candidate)) - 1
    lengths = []
    for reference in references:
        row = full
        for mask in filter(None, map(places.get, reference)):
            matched = row & mask
            row = ((row + matched) | (row - matched)) & full
        lengths.append(len(candidate) - row.bit_count())
    return lengths


def imageclef_rouge1(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Measure:
    """F in [0, 1] of the words in common, the best over references; mean over images.

    Args:
        candidates: Tokens made by the ``imageclef`` tokenizer.
        references: The same, at least one for each image. Two empty captions have nothing in common, and score 0.
    """
    pairs = pair_ngrams(candidates, references, max_order=1)
    common = np.asarray(pairs.orders[0].shared.sum(axis=1))
    both = pairs.candidate_lengths[pairs.image] + pairs.reference_lengths
    return mean_of("imageclef_rouge1", np.maximum.reduceat(2 * common / np.maximum(both, 1), pairs.first[:-1]))
