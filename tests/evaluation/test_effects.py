"""Effects over seeds against closed forms: Student's table, additive factorial tables, an exact power law."""

import itertools
import math

import numpy as np
import pytest

from grrcoca_cli.evaluation.effects import factorial_effects, fit_power_law, mean_over_seeds, sign_flip_p

NAMES = ["a", "b", "c"]
CELLS = list(itertools.product((False, True), repeat=3))


def test_t_interval_of_three_seeds_is_the_tables() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0])
    reach = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at .975, standard deviation 1
    assert found.value == 2
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - reach, 2 + reach))
    t = 2 / (1 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))  # closed form of t with 2 degrees of freedom


def test_an_interval_excludes_zero_just_where_p_is_below_its_level() -> None:
    for shift in np.linspace(-3, 3, 25):
        found = mean_over_seeds([shift - 1, shift + 0.2, shift + 0.8, shift])
        assert found.interval is not None
        assert found.p is not None
        assert (found.p < 0.05) == (not found.interval.low <= 0 <= found.interval.high)


@pytest.mark.parametrize(("values", "p"), [([0.0, 0.0], 1.0), ([2.0, 2.0], 0.0)], ids=str)
def test_seeds_without_spread_are_certain(values: list[float], p: float) -> None:
    assert mean_over_seeds(values).p == p


def test_one_seed_and_nan_have_no_interval() -> None:
    assert mean_over_seeds([5.0]).interval is None
    assert mean_over_seeds([5.0, math.nan]).interval is None


@pytest.mark.parametrize(
    ("differences", "p"),
    [([-1.0, -2.0, -3.0], 2 / 8), ([-1.0, -2.0, 3.0], 1.0), ([-1.0, -1.0, -1.0, 0.5], 4 / 16), ([0.0], 1.0)],
    ids=str,
)
def test_sign_flips_are_counted_exactly(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


def test_effects_of_an_additive_table_are_its_summands() -> None:
    gains = {"a": -0.5, "b": 0.2, "c": -0.1}
    table = {
        cell: [10 + seed + sum(gain for on, gain in zip(cell, gains.values(), strict=True) if on) for seed in (0, 3, 7)]
        for cell in CELLS
    }
    found = factorial_effects(table, NAMES)
    assert list(found)[:3] == [("a",), ("b",), ("c",)]
    for name, gain in gains.items():
        effect = found[(name,)]
        assert effect.value == pytest.approx(gain)
        assert effect.interval is not None
        assert effect.interval.high - effect.interval.low < 1e-9  # what a seed does to all cells cancels
    assert [found[names].value for names in found if len(names) > 1] == pytest.approx([0] * 4, abs=1e-12)


def test_an_interaction_is_half_of_what_one_changes_in_the_other() -> None:
    table = {(a, b, c): [float(a) + float(b) + 4.0 * (a and b)] for a, b, c in CELLS}
    found = factorial_effects(table, NAMES)
    assert found[("a", "b")].value == pytest.approx(2)
    assert found[("a",)].value == pytest.approx(1 + 2)
    assert found[("a", "c")].value == found[("a", "b", "c")].value == pytest.approx(0)


def test_a_threefold_interaction_stands_alone() -> None:
    table = {cell: [0.5 * math.prod(1 if on else -1 for on in cell)] for cell in CELLS}
    found = factorial_effects(table, NAMES)
    assert found.pop(("a", "b", "c")).value == pytest.approx(1)
    assert [effect.value for effect in found.values()] == pytest.approx([0] * 6)


def test_effects_vary_as_seeds_do() -> None:
    table = {cell: [float(cell[0]) * gain for gain in (1.0, 2.0, 3.0)] for cell in CELLS}
    assert factorial_effects(table, NAMES)[("a",)] == mean_over_seeds([1.0, 2.0, 3.0])


def test_a_power_law_is_found_again() -> None:
    runs = [(n, d, 7 * n**-0.1 * d**-0.25) for n in (1e5, 3e5, 1e6) for d in (500.0, 2000.0, 8000.0)]
    found = fit_power_law(*zip(*runs, strict=True))
    assert found is not None
    assert (found.scale, found.parameters.value, found.samples.value) == pytest.approx((7, 0.1, 0.25))
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.at(2e5, 1000) == pytest.approx(7 * 2e5**-0.1 * 1000**-0.25)


@pytest.mark.parametrize(
    "runs",
    [[(1e5, 500, 2.0), (1e6, 500, 1.0), (1e5, 900, 1.5)], [(1e5, 500.0 * k, 1.0 / k) for k in range(1, 6)]],
    ids=["too few", "one size"],
)
def test_a_power_law_that_is_not_determined_is_none(runs: list[tuple[float, float, float]]) -> None:
    assert fit_power_law(*zip(*runs, strict=True)) is None
