"""BLEU-1 to BLEU-4 as the COCO caption evaluation defines them, of a corpus and of single images."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from grrcoca_cli.evaluation.measures import Measure
from grrcoca_cli.evaluation.ngrams import MAX_ORDER, Floats, Ints, Pairs, Tokens, row_of_entry

_TINY, _SMALL = 1e-15, 1e-9  # the COCO evaluation's guards against 0/0; part of the score of single images


def bleu(pairs: Pairs) -> list[Measure]:
    """``bleu1`` to ``bleu4`` in [0, 1] (Papineni et al., 2002), closest reference length, not smoothed.

    Of two references that are equally close in length the shorter counts.
    """
    lengths = pairs.candidate_lengths
    correct = [_clipped_matches(pairs, order) for order in range(MAX_ORDER)]
    guessed = [np.maximum(lengths - order, 0) for order in range(MAX_ORDER)]
    parts = np.stack([*correct, *guessed, lengths, _closest_lengths(pairs)], axis=1).astype(np.float64)
    return [Measure(f"bleu{order}", parts, partial(_bleu, order=order)) for order in range(1, MAX_ORDER + 1)]


def _bleu(sums: Floats, order: int) -> Floats:
    """From counts (..., 10), those of one image or summed over many: 4 matches, 4 guesses, both lengths."""
    correct, guessed = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    precisions: Floats = np.prod((correct + _TINY) / (guessed + _SMALL), axis=-1) ** (1 / order)
    return precisions * np.exp(np.minimum(1 - 1 / ratio, 0))


def _clipped_matches(pairs: Pairs, order: int) -> Floats:
    """(N,): n-grams of each candidate that are in a reference, each as often as the reference that has it most."""
    shared = pairs.by_image(pairs.orders[order].shared)
    if not shared.nnz:
        return np.zeros(len(pairs.candidate_lengths))
    rows = row_of_entry(shared)
    fresh = (np.diff(rows, prepend=-1) != 0) | (np.diff(shared.indices, prepend=-1) != 0)
    most = np.maximum.reduceat(shared.data, np.flatnonzero(fresh))
    return np.bincount(rows[fresh], weights=most, minlength=shared.shape[0]).astype(np.float64)


def _closest_lengths(pairs: Pairs) -> Ints:
    """(N,): the length of the reference that is nearest to the candidate's."""
    lengths = pairs.reference_lengths
    beyond = int(lengths.max()) + 1
    ranked = np.abs(lengths - pairs.candidate_lengths[pairs.image]) * beyond + lengths  # by distance, then by length
    return np.minimum.reduceat(ranked, pairs.first[:-1]) % beyond


def smoothed_bleu4(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """BLEU-4 of single captions in [0, 1], by nltk: a count of no match becomes 0.1 (Chen and Cherry, 2014, method 1).

    To rank images only: without smoothing most captions share the lowest place, having no 4-gram in common with a
    reference. Takes a tenth of a millisecond an image.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # half a second

    smoothing = SmoothingFunction().method1
    return [
        float(sentence_bleu(theirs, ours, smoothing_function=smoothing))
        for ours, theirs in zip(candidates, references, strict=True)
    ]
