"""Calibration and the shape of captions, by hand."""

import numpy as np
import pytest
from scipy import stats

from grrcoca_cli.evaluation.calibration import expected_calibration_error, spearman
from grrcoca_cli.evaluation.diversity import diversity


def test_calibration_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.95, 0.1, 1 / 15, 1.0, 0.0])
    correct = np.array([True, False, True, False, True, True, False])
    found = expected_calibration_error(confidence, correct, bins=2)
    assert found.counts.tolist() == [3, 4]
    low, high = abs(confidence[[3, 4, 6]].mean() - 1 / 3), abs(confidence[[0, 1, 2, 5]].mean() - 3 / 4)
    assert found.error == pytest.approx((3 * low + 4 * high) / 7)
    assert expected_calibration_error(np.array([]), np.array([], bool)).error is None
    assert np.isnan(expected_calibration_error(np.array([0.5]), np.array([True])).accuracy[0])


def test_a_diverged_model_has_no_calibration() -> None:
    found = expected_calibration_error(np.array([np.nan, 0.5, 0.5]), np.array([False, True, False]))
    assert found.error is None
    assert found.counts.sum() == 2


def test_a_model_that_means_what_it_says() -> None:
    confidence = np.random.default_rng(0).random(200_000)
    correct = np.random.default_rng(1).random(200_000) < confidence
    assert expected_calibration_error(confidence, correct).error == pytest.approx(0, abs=0.01)
    assert expected_calibration_error(np.full(1000, 0.9), np.zeros(1000, bool)).error == pytest.approx(0.9)


def test_spearman_is_scipys() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 8, 60).tolist(), draw.random(60).tolist()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman([1, 2, 3], [10, 20, 99]) == pytest.approx(1)
    assert spearman([1, 1], [2, 3]) is None
    assert spearman([1], [2]) is None
    assert spearman([1, float("nan"), 3], [1, 2, 3]) is None
    assert spearman([float("-inf"), 1, 2], [1, 2, 3]) == pytest.approx(1)


def test_diversity_by_hand() -> None:
    predictions = {"1": ["a", "b", "a", "b", "a", "b"], "2": ["a", "b"], "3": [], "4": ["a", "b"]}
    references = {image: [["x", "y", "z"], ["x"]] for image in predictions}
    found = diversity(predictions, references, training=[("a", "b")])
    assert found == pytest.approx(
        {
            "mean_length": 2.5,
            "length_ratio": 1.25,
            "empty": 0.25,
            "distinct_captions": 0.75,
            "most_frequent": 0.5,
            "distinct1": 0.2,
            "distinct2": 2 / 7,
            "repeated4": 0.25,
            "copied": 0.5,
        }
    )
    assert diversity({"1": ["a", "b", "c", "d", "a", "b", "c", "d"]}, {"1": [["x"]]})["repeated4"] == 1
    assert diversity({"1": []}, {"1": []})["length_ratio"] == 0
