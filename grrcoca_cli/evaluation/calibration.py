"""Whether a model's probabilities mean what they say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.evaluation.measures import Floats

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, with the bins it is made of.

    Attributes:
        error: Mean distance of confidence and accuracy over tokens, in [0, 1]; None without tokens, or where a
            confidence is not finite.
        counts: Tokens a bin, (bins,).
        confidence: Mean probability a bin, NaN in empty ones.
        accuracy: Share of right tokens a bin, NaN in empty ones.
    """

    error: float | None
    counts: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """ECE over bins of equal width (Guo et al., 2017, eq. 3).

    Args:
        confidence: Probability of the likeliest token at each position, (T,).
        correct: Whether it is the right one, (T,).
        bins: Count of bins; a confidence on an edge belongs to the bin below.
    """
    finite = np.isfinite(confidence)
    sound = bool(len(finite) and finite.all())  # NaN falls into no bin, and must not go unseen
    confidence, correct = confidence[finite], correct[finite]
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=bins) / counts
        right = np.bincount(place, weights=correct, minlength=bins) / counts
    error = float(np.nansum(np.abs(mean - right) * counts) / counts.sum()) if sound else None
    return Calibration(error, counts, mean, right)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1], ties at their mean rank; None for a constant, NaN, or fewer than two pairs."""
    if len(x) < 2 or np.isnan([x, y]).any():
        return None
    from scipy.stats import rankdata

    a, b = (rankdata(values) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else None
