"""Intervals, comparisons, groups: coverage, pairing, the exact values of trivial cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grrcoca_cli.evaluation.measures import Measure, mean_of, ratio
from grrcoca_cli.evaluation.statistics import bootstrap_intervals, by_group, compare, holm, shuffled


def normal(seed: int, count: int = 200, mean: float = 0.0) -> Measure:
    return mean_of("m", np.random.default_rng(seed).normal(mean, 1, count))


def test_an_interval_of_a_mean_is_the_textbooks() -> None:
    measure = normal(0, 2000)
    interval = bootstrap_intervals([measure], resamples=4000)["m"]
    assert interval is not None
    half = 1.96 * measure.parts[:, 0].std(ddof=1) / 2000**0.5
    assert interval.high - measure.value == pytest.approx(half, rel=0.06)
    assert measure.value - interval.low == pytest.approx(half, rel=0.06)


def test_intervals_cover_what_they_say() -> None:
    hits = 0
    for seed in range(200):
        interval = bootstrap_intervals([normal(seed)], resamples=300, seed=seed)["m"]
        assert interval is not None
        hits += interval.low <= 0 <= interval.high
    assert 0.89 < hits / 200 <= 1


def test_a_corpus_level_metric_is_resampled_as_one() -> None:
    parts = np.random.default_rng(1).random((50, 2)) + 0.5
    found = bootstrap_intervals([Measure("ratio", parts, ratio), Measure("again", parts, ratio)], resamples=500)
    assert found["ratio"] == found["again"]  # every measure sees the same resamples
    assert found["ratio"] is not None
    assert found["ratio"].low < parts[:, 0].sum() / parts[:, 1].sum() < found["ratio"].high


def test_the_seed_decides_and_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = bootstrap_intervals([normal(0)], seed=3)
    assert first == bootstrap_intervals([normal(0)], seed=3)
    assert first != bootstrap_intervals([normal(0)], seed=4)
    pair = [normal(1)], [normal(2)]
    whole = compare(*pair, permutations=999)["m"]
    assert first["m"] is not None
    assert whole.interval is not None
    monkeypatch.setattr("grrcoca_cli.evaluation.statistics._CHUNK", 1000)
    parts, again = compare(*pair, permutations=999)["m"], bootstrap_intervals([normal(0)], seed=3)["m"]
    assert parts.interval is not None
    assert again is not None
    assert (again.low, again.high) == pytest.approx((first["m"].low, first["m"].high))
    assert (parts.interval.low, parts.interval.high) == pytest.approx((whole.interval.low, whole.interval.high))
    assert parts.p == whole.p


def test_clusters_widen_an_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=40), 25)  # 25 equal pictures a patient
    labels = [str(index // 25) for index in range(1000)]
    loose = bootstrap_intervals([mean_of("m", values)])["m"]
    honest = bootstrap_intervals([mean_of("m", values)], clusters=labels)["m"]
    assert loose is not None
    assert honest is not None
    assert (honest.high - honest.low) / (loose.high - loose.low) == pytest.approx(5, rel=0.2)
    assert bootstrap_intervals([mean_of("m", values)], clusters=["a"] * 1000)["m"] is None


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_have_no_interval(count: int) -> None:
    assert bootstrap_intervals([mean_of("m", np.ones(count))])["m"] is None
    assert bootstrap_intervals([]) == {}


def test_a_system_against_itself() -> None:
    measures = [normal(0), Measure("r", np.random.default_rng(0).random((200, 2)), ratio)]
    for difference in compare(measures, measures, permutations=500).values():
        assert difference.value == 0
        assert difference.p == 1
        assert difference.interval is not None
        assert (difference.interval.low, difference.interval.high) == (0, 0)


@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 5))
def test_a_system_against_itself_at_any_width(images: int, width: int, seed: int) -> None:
    parts = np.random.default_rng(seed).random((images, width)) * 1e6

    def geometric(sums: np.ndarray) -> np.ndarray:
        return np.exp(np.log(sums).mean(axis=-1))

    measures = [Measure("g", parts, geometric), normal(seed, images)]
    for found in compare(measures, measures, resamples=20, permutations=20).values():
        assert (found.value, found.p) == (0, 1)
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == (0, 0)


def test_each_measure_is_compared_as_if_alone() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (
        [normal(seed), Measure("r", draw.random((200, 3)), ratio), mean_of("n", draw.random(200))] for seed in (7, 8)
    )
    together = compare(ours, theirs[::-1], permutations=500)
    assert list(together) == ["m", "r", "n"]
    for mine, other in zip(ours, theirs, strict=True):
        alone = compare([mine], [other], permutations=500)[mine.name]
        assert together[mine.name].p == alone.p
        assert together[mine.name].value == alone.value


def test_clusters_are_swapped_whole() -> None:
    ours, theirs = np.repeat([1.0, 1.0, 1.0], 50), np.zeros(150)
    labels = [str(index // 50) for index in range(150)]
    loose = compare([mean_of("m", ours)], [mean_of("m", theirs)], permutations=2000)["m"]
    honest = compare([mean_of("m", ours)], [mean_of("m", theirs)], clusters=labels, permutations=2000)["m"]
    assert loose.p == 1 / 2001
    assert honest.p == pytest.approx(2 / 8, abs=0.04)  # three patients have eight ways to be swapped


def test_pairing_finds_what_intervals_do_not() -> None:
    base = np.random.default_rng(0).normal(size=500)
    better = base + np.random.default_rng(1).normal(0.02, 0.1, 500)
    single = bootstrap_intervals([mean_of("m", base)])["m"]
    paired = compare([mean_of("m", better)], [mean_of("m", base)])["m"]
    assert single is not None
    assert paired.interval is not None
    assert paired.interval.low > 0
    assert paired.p < 0.01
    assert (single.high - single.low) > 5 * (paired.interval.high - paired.interval.low)
    back = compare([mean_of("m", base)], [mean_of("m", better)])["m"]
    assert back.value == pytest.approx(-paired.value)
    assert back.p == paired.p


def test_p_is_the_share_of_all_swaps() -> None:
    ours, theirs = np.array([3.0, 1.0, 4.0, 1.5, 9.0]), np.array([2.0, 2.0, 1.0, 1.0, 5.0])
    difference = ours - theirs
    signs = np.array(list(itertools.product([-1, 1], repeat=5)))
    exact = (np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12).mean()
    found = compare([mean_of("m", ours)], [mean_of("m", theirs)], permutations=20_000)["m"]
    assert found.p == pytest.approx(exact, abs=0.01)


def test_p_is_even_under_the_null() -> None:
    p_values = [
        compare([normal(seed, 60)], [normal(seed + 500, 60)], resamples=0, permutations=300)["m"].p
        for seed in range(150)
    ]
    assert np.mean(np.array(p_values) <= 0.1) < 0.18
    assert 0.4 < np.mean(p_values) < 0.6


def test_groups_are_summed_by_themselves() -> None:
    parts = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = by_group([Measure("r", parts, ratio), mean_of("m", parts[:, 0])], ["b", "a", "b"])
    assert found == {"a": {"r": 0.75, "m": 3.0}, "b": {"r": 0.75, "m": 3.0}}


@given(st.lists(st.text(max_size=3), min_size=2, max_size=30, unique=True), st.integers(0, 100))
def test_nobody_keeps_their_own(ids: list[str], seed: int) -> None:
    drawn = shuffled(ids, seed)
    assert sorted(drawn) == sorted(ids)
    assert all(here != there for here, there in zip(ids, drawn, strict=True))
    assert drawn == shuffled(ids, seed)


def test_one_id_cannot_be_deranged() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        shuffled(["a"], 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
