"""How sure an effect of training is, with seeds as the unit: intervals, tests, factorial effects, a power law.

Seeds are paired: two arms with one seed saw the same samples in the same order, so what a seed does to both cancels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grrcoca_cli.evaluation.measures import Floats
from grrcoca_cli.evaluation.statistics import Interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: The mean.
        interval: Student's t; None with fewer than two seeds.
        p: Two-sided, of the hypothesis that the mean is 0, by the same t; None with fewer than two seeds.
        count: Seeds.
    """

    value: float
    interval: Interval | None
    p: float | None
    count: int


def mean_over_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of one value a seed, its t interval (Student, 1908), and the t test of a mean of 0.

    Paired: give differences. NaN among the values gives a mean of NaN without an interval.

    Args:
        values: At least one.
        level: Coverage, in (0, 1).
    """
    from scipy.special import stdtr, stdtrit

    count, value = len(values), float(np.mean(values))
    if count < 2 or not math.isfinite(value):
        return Estimate(value, None, None, count)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    reach = float(stdtrit(count - 1, (1 + level) / 2)) * error
    certain = 1.0 if value == 0 else 0.0
    p = 2 * float(stdtr(count - 1, -abs(value) / error)) if error else certain
    return Estimate(value, Interval(value - reach, value + reach), p, count)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided sign-flip test of a mean of 0 (Fisher, 1935): share of the 2^n signs at least as extreme.

    Args:
        differences: One a seed, 1 to 20 of them; n of them can give no less than 2^(1 - n).
    """
    values = np.asarray(differences, np.float64)
    assert 1 <= len(values) <= 20
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()).mean())


def factorial_effects(
    values: Mapping[tuple[bool, ...], Sequence[float]], names: Sequence[str], level: float = 0.95
) -> dict[tuple[str, ...], Estimate]:
    """Main effects and interactions of a full two-level factorial design (Yates, 1937), paired by seed.

    An effect is the mean where the product of its factors' signs is +1, less the mean where it is -1: for one
    factor, what switching it on does on average over the others; for two, half of what the second one changes in the
    effect of the first.

    Args:
        values: One value a seed for each combination of levels, the same seeds in one order.
        names: Of the factors, in the order of the levels.
        level: Coverage of the intervals.

    Returns:
        By the names of the factors that take part, main effects first.
    """
    cells = list(itertools.product((False, True), repeat=len(names)))
    table = np.array([values[cell] for cell in cells], np.float64)  # (2^k, seeds)
    signs = np.where(np.array(cells), 1.0, -1.0)  # (2^k, k)
    found = {}
    for order in range(1, len(names) + 1):
        for factors in itertools.combinations(range(len(names)), order):
            contrast = signs[:, list(factors)].prod(axis=1) @ table / (len(cells) / 2)
            found[tuple(names[place] for place in factors)] = mean_over_seeds(contrast.tolist(), level)
    return found


@dataclass(frozen=True)
class PowerLaw:
    """``loss = scale * parameters^-a * samples^-b``, fitted by least squares on logarithms.

    Attributes:
        scale: The loss at one parameter and one sample; of no meaning by itself.
        parameters, samples: The exponents a and b with their t intervals.
        error: Standard deviation of the residuals of the logarithm, about a share of the loss.
    """

    scale: float
    parameters: Estimate
    samples: Estimate
    error: float

    def at(self, parameters: float, samples: float) -> float:
        """The fitted loss."""
        return float(self.scale * parameters**-self.parameters.value * samples**-self.samples.value)


def fit_power_law(parameters: Sequence[float], samples: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Fit both exponents at once (the form of Kaplan et al., 2020, without a floor).

    A floor is left out on purpose: over less than a decade it cannot be told from the exponents.

    Args:
        parameters, samples, losses: One entry a run, all above 0.

    Returns:
        None where fewer than four runs, or runs that vary in one of the two alone, leave it undetermined.
    """
    from scipy.special import stdtrit

    x = np.stack([np.ones(len(losses)), -np.log(parameters), -np.log(samples)], axis=1)
    y = np.log(losses)
    if len(y) <= x.shape[1] or np.linalg.matrix_rank(x - [0, *x[:, 1:].mean(axis=0)]) < x.shape[1]:
        return None
    coefficients: Floats = np.linalg.lstsq(x, y, rcond=None)[0]
    free = len(y) - x.shape[1]
    variance = float(((y - x @ coefficients) ** 2).sum()) / free
    errors = np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    t = float(stdtrit(free, 0.975))

    def exponent(place: int) -> Estimate:
        value, reach = float(coefficients[place]), t * float(errors[place])
        return Estimate(value, Interval(value - reach, value + reach), None, len(y))

    return PowerLaw(math.exp(coefficients[0]), exponent(1), exponent(2), math.sqrt(variance))
