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

_CHUNK = 8_000_000  # weights held at once, 64 MB


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
    differences: dict[str, Difference] = {}
    for measure in ours:
        other = by_name[measure.name]
        mine, its = (_by_cluster(m.parts, clusters) for m in (measure, other))
        change = measure.value - other.value
        resampled = _resampled([(measure, mine), (other, its)], resamples, seed)
        differences[measure.name] = Difference(
            change,
            _interval(resampled[0] - resampled[1], level) if resamples else None,
            _swap_p(measure, mine, its, change, permutations, seed),
        )
    return differences


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


def _swap_p(measure: Measure, ours: Floats, theirs: Floats, change: float, permutations: int, seed: int) -> float:
    """Share of random swaps that differ at least as much, the observed one counted among them."""
    draw = np.random.default_rng(seed)
    total, step = ours.sum(axis=0) + theirs.sum(axis=0), ours - theirs
    # Rounding must not decide: sums in another order differ in the last digits.
    bound = abs(change) - 1e-12 * max(1.0, abs(change))
    count = 0
    chunk = max(1, _CHUNK // max(len(ours), 1))
    for start in range(0, permutations, chunk):
        swaps = draw.integers(0, 2, size=(min(chunk, permutations - start), len(ours)), dtype=np.int8)
        mine = swaps.astype(np.float64) @ step + theirs.sum(axis=0)
        changes = measure.finish(mine) - measure.finish(total - mine)
        count += int((~(np.abs(changes) < bound)).sum())
    return (count + 1) / (permutations + 1)
