"""CIDEr-D as the COCO evaluation computes it: CIDEr (Vedantam et al., 2015), counts clipped, a penalty on length."""

import numpy as np

from grrcoca_cli.evaluation.idf import Idf
from grrcoca_cli.evaluation.measures import Measure, mean_of
from grrcoca_cli.evaluation.ngrams import Floats, Order, Pairs

SIGMA = 6.0
"""Width of the length penalty, in bigrams."""


def cider_d(pairs: Pairs, idf: Idf | None = None) -> Measure | None:
    """CIDEr-D in [0, 10]; mean over references, n-gram orders and images.

    Args:
        pairs: Every image with references, scored or not: without ``idf``, the document frequencies come from here.
        idf: Saved document frequencies; its n-grams are the ``known`` ones of ``pairs``, in their order.

    Returns:
        None where no n-gram of any reference has a weight: one image, or all references the same.
    """
    weights = [_weights(pairs, length, idf) for length in range(1, len(pairs.orders) + 1)]
    if not any(weight[order.references.indices].any() for order, weight in zip(pairs.orders, weights, strict=True)):
        return None
    cosines = [_cosines(pairs, order, weight**2) for order, weight in zip(pairs.orders, weights, strict=True)]
    ours, theirs = (np.maximum(lengths - 1, 0) for lengths in (pairs.candidate_lengths, pairs.reference_lengths))
    similarity = np.mean(cosines, axis=0) * np.exp(-((ours[pairs.image] - theirs) ** 2) / (2 * SIGMA**2))  # (M,)
    return mean_of("cider_d", 10 * np.add.reduceat(similarity, pairs.first[:-1]) / np.diff(pairs.first))


def _weights(pairs: Pairs, length: int, idf: Idf | None) -> Floats:
    """(U,): log of all images over those with the n-gram; one that is in no image counts as in one."""
    order = pairs.orders[length - 1]
    if idf is None:
        images, found = len(pairs.candidate_lengths), _document_frequency(pairs, order)
    else:
        images, found = idf.images, np.zeros(order.references.shape[1])
        found[order.known] = [count for ngram, count in idf.counts.items() if ngram.count(" ") + 1 == length]
    weights: Floats = np.log(float(images)) - np.log(np.maximum(found, 1))
    return weights


def _document_frequency(pairs: Pairs, order: Order) -> Floats:
    """(U,): in the references of how many images each n-gram is."""
    per_image = pairs.by_image(order.references)
    per_image.sum_duplicates()
    return np.bincount(per_image.indices, minlength=per_image.shape[1]).astype(np.float64)


def _cosines(pairs: Pairs, order: Order, squared: Floats) -> Floats:
    """(M,): of each reference and its candidate, each candidate count at most the reference's; 0 without weights."""
    ours = np.sqrt(order.candidates.power(2) @ squared)[pairs.image]
    theirs = np.sqrt(order.references.power(2) @ squared)
    dots = order.shared.multiply(order.references) @ squared
    cosines: Floats = np.divide(dots, ours * theirs, out=np.zeros(len(dots)), where=dots > 0)
    return cosines
