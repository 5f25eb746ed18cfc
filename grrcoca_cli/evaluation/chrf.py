"""chrF as sacrebleu computes it: character n-grams, and so an opinion that no tokenizer has a part in."""

from collections.abc import Sequence

import numpy as np

from grrcoca_cli.evaluation.measures import Measure
from grrcoca_cli.evaluation.ngrams import Floats, Pairs, pair_ngrams

ORDER, BETA = 6, 2
_AT_ONCE = 1024  # images, so that the n-grams of a large set are never in memory together


def chrf(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """chrF2 from 0 to 100 (Popović, 2015), case kept, white space left out, the best reference of each image.

    Args:
        candidates: Captions as written, not tokens.
        references: The same, at least one for each image.
    """
    ours = ["".join(text.split()) for text in candidates]
    theirs = [["".join(text.split()) for text in several] for several in references]
    blocks = [slice(start, start + _AT_ONCE) for start in range(0, len(ours), _AT_ONCE)]
    parts = [_best_counts(pair_ngrams(ours[block], theirs[block], max_order=ORDER)) for block in blocks]
    return Measure("chrf", np.concatenate(parts), _chrf)


def _best_counts(pairs: Pairs) -> Floats:
    """(N, 18): counts as `_chrf` takes them, against the reference, the first if there are several, that is best."""
    lengths = np.stack([pairs.candidate_lengths[pairs.image], pairs.reference_lengths])[..., None]
    given, wanted = np.maximum(lengths - np.arange(ORDER), 0)  # (M, 6) each
    matched = np.stack([order.shared.sum(axis=1) for order in pairs.orders], axis=1)
    counts = np.stack([given * (wanted > 0), wanted, matched], axis=1).astype(np.float64)  # (M, 3, 6)
    scores = _chrf(counts.reshape(len(counts), -1))
    best = np.maximum.reduceat(scores, pairs.first[:-1])
    where = np.flatnonzero(scores == best[pairs.image])
    first = where[np.unique(pairs.image[where], return_index=True)[1]]
    return counts[first].reshape(len(first), -1)


def _chrf(sums: Floats) -> Floats:
    """From counts (..., 18) of one image or summed over many: n-grams of the caption, of the reference, of both."""
    given, wanted, matched = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, ORDER), -2, 0)
    counted = (given > 0) & (wanted > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision, recall = (
        np.divide(matched, total, out=np.zeros(matched.shape), where=counted).sum(axis=-1) / orders
        for total in (given, wanted)
    )
    both = BETA**2 * precision + recall
    product = (1 + BETA**2) * precision * recall  # in sacrebleu's order, for its choice among equally good references
    score: Floats = 100 * np.divide(product, both, out=np.zeros(both.shape), where=both > 0)
    return score
