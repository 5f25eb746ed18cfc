"""The form in which every metric hands its per-image parts on: what intervals and comparisons are computed from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A metric as a function of sums over images: resampling adds up parts anew and never scores a caption twice.

    Attributes:
        name: As in `metrics.Scores` (``"bleu4"``).
        parts: (N, K), the sufficient statistics of each image, in the order of the ids.
        finish: From sums (..., K) to values (...); NaN where the metric is not defined on such sums.
        higher_is_better: False for losses.
    """

    name: str
    parts: Floats
    finish: Callable[[Floats], Floats]
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """The metric over all images."""
        return float(self.finish(self.parts.sum(axis=0)))


def mean_of(name: str, values: Floats | NDArray[np.bool_], *, higher_is_better: bool = True) -> Measure:
    """The measure that is a plain mean of one value (N,) an image."""
    parts = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    return Measure(name, parts, ratio, higher_is_better)


def ratio(sums: Floats) -> Floats:
    """First sum over second, NaN over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: Floats = sums[..., 0] / sums[..., 1]
    return quotient
