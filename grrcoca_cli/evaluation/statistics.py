"""How sure a score is: bootstrap intervals, paired comparisons, groups, and what random captions would score.

All of it works on the sums of `measures.Measure`: images are resampled, captions are never scored again, and the
document frequencies of CIDEr-D stay those of the whole set.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.evaluation.measures import Floats, Measure

MIN_RANKED = 100
"""Groups of fewer images are shown and not ranked: their scores are mostly chance."""

_CHUNK = 2_000_000  # weights held at once, 16 MB


@dataclass(frozen=True)
class Interval:
    """Ends of an interval, in the metric's own unit."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One system's score less another's, on the same images.

    Attributes:
        value: Ours less theirs.
        interval: Of the bootstrap, both systems resampled together; None where it is not defined.
        p: Two-sided, of the hypothesis that the systems are interchangeable image by image.
    """

    value: float
    interval: Interval | None
    p: float


def bootstrap_intervals(
    measures: Sequence[Measure],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | None]:
    """Percentile bootstrap intervals over images (Efron and Tibshirani, 1993, chapter 13).

    Args:
        measures: Of the same N images; every one sees the same resamples.
        clusters: A label an image; images of one label are drawn together (several pictures of one patient).
        resamples: Count of resampled sets.
        seed: The same seed gives the same intervals.
        level: Coverage, in (0, 1).

    Returns:
        By measure; None with fewer than two images or clusters, or where a resample leaves the metric undefined.
    """
    gathered = [(measure, _by_cluster(measure.parts, clusters)) for measure in measures]
    values = _resampled([(measure, parts) for measure, parts in gathered], resamples, seed)
    return {measure.name: _interval(found, level) for (measure, _), found in zip(gathered, values, strict=True)}


def compare(
    ours: Sequence[Measure],
    theirs: Sequence[Measure],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
    permutations: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Differences between two systems on the same images, in the order of ``ours``.

    The interval resamples images with both systems' parts; p swaps the two systems on random images (sign-flip or
    approximate randomisation test: Riezler and Maxwell, 2005), ``(count + 1) / (permutations + 1)``.

    Args:
        ours: Measures of one system.
        theirs: Measures of the other with the same names, images in the same order.
        clusters: As in `bootstrap_intervals`; swapped and resampled whole.
        resamples, permutations: How often; 0 resamples give no interval.
        seed: The same seed gives the same numbers.
        level: Coverage of the interval.
    """
    by_name = {measure.name: measure for measure in theirs}
    others = [by_name[measure.name] for measure in ours]
    mine = [(measure, _by_cluster(measure.parts, clusters)) for measure in ours]
    its = [(measure, _by_cluster(measure.parts, clusters)) for measure in others]
    # Two products of one shape: equal parts then give equal sums to the last bit, whatever order BLAS adds them in.
    resampled = zip(_resampled(mine, resamples, seed), _resampled(its, resamples, seed), strict=True)
    intervals = [_interval(one - other, level) if resamples else None for one, other in resampled]
    p_values = _swap_p(mine, its, permutations, seed)
    return {
        one.name: Difference(one.value - other.value, interval, p)
        for one, other, interval, p in zip(ours, others, intervals, p_values, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, 1979), in the order given, at most 1."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return adjusted


def by_group(measures: Sequence[Measure], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each measure over the images of each group, with the document frequencies of the whole set.

    Args:
        measures: Of the same N images.
        groups: A label an image.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    found: dict[str, dict[str, float]] = {str(name): {} for name in names}
    for measure in measures:
        values = measure.finish(_summed(measure.parts, place, len(names)))
        for name, value in zip(names, values, strict=True):
            found[str(name)][measure.name] = float(value)
    return found


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """For each id another one, drawn without repeats so that none keeps its own (a derangement in one cycle).

    Raises:
        ValueError: There are fewer than two ids.
    """
    if len(ids) < 2:
        raise ValueError("fewer than two ids cannot be deranged")
    order = list(range(len(ids)))
    random.Random(seed).shuffle(order)
    drawn = [""] * len(ids)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        drawn[here] = ids[there]
    return drawn


def _by_cluster(parts: Floats, clusters: Sequence[str] | None) -> Floats:
    """Parts summed over each cluster, (clusters, K); as they are without clusters."""
    if clusters is None:
        return parts
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    return _summed(parts, place, len(names))


def _summed(parts: Floats, place: NDArray[np.intp], count: int) -> Floats:
    sums = np.zeros((count, parts.shape[1]))
    np.add.at(sums, place, parts)
    return sums


def _resampled(measures: Sequence[tuple[Measure, Floats]], resamples: int, seed: int) -> list[Floats]:
    """Values of each measure on each resampled set, (resamples,) a measure."""
    if not measures:
        return []
    units = len(measures[0][1])
    draw = np.random.default_rng(seed)
    stacked = np.concatenate([parts for _, parts in measures], axis=1)  # one product for all of them
    sums = []
    step = max(1, _CHUNK // max(units, 1))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = draw.integers(0, max(units, 1), size=(count, units))
        rows = np.arange(count)[:, None] * units
        weights = np.bincount((drawn + rows).ravel(), minlength=count * units).reshape(count, units)
        sums.append(weights.astype(np.float64) @ stacked)
    total = np.concatenate(sums) if sums else np.empty((0, stacked.shape[1]))
    values, start = [], 0
    for measure, parts in measures:
        values.append(measure.finish(total[:, start : start + parts.shape[1]]) if units > 1 else np.full(1, np.nan))
        start += parts.shape[1]
    return values


def _interval(values: Floats, level: float) -> Interval | None:
    if not values.size or not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _swap_p(
    ours: Sequence[tuple[Measure, Floats]], theirs: Sequence[tuple[Measure, Floats]], permutations: int, seed: int
) -> list[float]:
    """For each measure the share of random swaps that differ at least as much, the observed one counted among them."""
    if not ours:
        return []
    mine, its = (np.concatenate([parts for _, parts in side], axis=1) for side in (ours, theirs))
    base, total, step = its.sum(axis=0), mine.sum(axis=0) + its.sum(axis=0), mine - its
    ends = np.cumsum([parts.shape[1] for _, parts in ours])
    columns = [slice(end - parts.shape[1], end) for end, (_, parts) in zip(ends, ours, strict=True)]
    counts = np.zeros(len(ours), np.int64)
    draw = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(len(step), 1))
    for start in range(0, permutations, chunk):
        swaps = draw.integers(0, 2, size=(min(chunk, permutations - start), len(step)), dtype=np.int8)
        sums = swaps.astype(np.float64) @ step + base
        for place, ((one, _), (other, _), part) in enumerate(zip(ours, theirs, columns, strict=True)):
            changes = one.finish(sums[:, part]) - other.finish(total[part] - sums[:, part])
            values = one.value, other.value
            # Sums in another order differ in the last digits, and that must not decide.
            bound = abs(values[0] - values[1]) - 1e-12 * max(1.0, *map(abs, values))
            counts[place] += (~(np.abs(changes) < bound)).sum()  # what is not defined counts as extreme
    return [(int(count) + 1) / (permutations + 1) for count in counts]
