"""Ranks in a gallery: ties, equal captions, damage, chunks."""

import numpy as np
import pytest

from grrcoca_cli.evaluation import retrieval as module
from grrcoca_cli.evaluation.retrieval import retrieval


def unit(rows: list[list[float]]) -> np.ndarray:
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_perfect_and_reversed() -> None:
    eye = np.eye(12, dtype=np.float32)
    perfect = retrieval(eye, eye, range(12))
    assert perfect.image_to_text.tolist() == [1] * 12
    assert [measure.value for measure in perfect.measures()] == [1.0] * 6
    assert [measure.name for measure in perfect.measures()][::5] == ["image_to_text_r1", "text_to_image_r10"]
    worst = retrieval(eye, -eye, range(12))
    assert (worst.image_to_text_median, worst.text_to_image_median) == (12, 12)


def test_each_direction_by_hand() -> None:
    images, texts = unit([[1, 0], [1, 1], [0, 1]]), unit([[1, 0.1], [0, 1], [0.2, 1]])
    found = retrieval(images, texts, "abc")
    assert found.image_to_text.tolist() == [1, 3, 2]
    assert found.text_to_image.tolist() == [1, 2, 1]


def test_a_model_that_gives_all_the_same_is_last() -> None:
    same = unit([[1, 1]] * 20)
    found = retrieval(same, same, range(20))
    assert found.image_to_text.tolist() == [20] * 20
    assert found.measures()[2].value == 0


@pytest.mark.parametrize(("count", "width"), [(20, 64), (37, 512), (129, 513), (1001, 768)])
def test_rounding_breaks_no_tie(count: int, width: int) -> None:
    """Products of the very same vectors differ in their last bits by where they stand in a matrix."""
    vector = np.random.default_rng(count + width).normal(size=width)
    same = np.tile((vector / np.linalg.norm(vector)).astype(np.float32), (count, 1))
    found = retrieval(same, same, range(count))
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [count] * count
    assert [measure.value for measure in found.measures()] == [0.0] * 6


def test_a_small_difference_is_still_one() -> None:
    angle = np.array([0.0, 0.01, 0.02])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    assert retrieval(vectors, vectors, range(3)).image_to_text.tolist() == [1, 1, 1]


def test_equal_captions_are_right_for_each_other_and_one_answer() -> None:
    images = unit([[1, 0.0], [0.9, 0.1], [0, 1]])
    texts = unit([[1, 0], [1, 0], [0, 1]])
    assert retrieval(images, texts, ["no lesion", "no lesion", "lesion"]).image_to_text.tolist() == [1, 1, 1]
    # A wrong caption that is there twice pushes down by one place, not two.
    assert retrieval(unit([[0, 1]] * 3), texts[[0, 2, 2]], ["x", "y", "y"]).image_to_text.tolist() == [2, 1, 1]
    assert retrieval(images, texts, "aab").text_to_image.tolist() == [1, 1, 1]


def test_what_is_not_finite_loses() -> None:
    images = np.eye(3, dtype=np.float32)
    images[0] = np.nan
    found = retrieval(images, np.eye(3, dtype=np.float32), range(3))
    assert found.image_to_text.tolist() == [3, 1, 1]
    assert found.text_to_image[0] == 3
    assert found.text_to_image[1] == 2


def test_what_is_infinite_wins_nothing() -> None:
    texts = np.eye(3, dtype=np.float32)
    texts[0, 0] = np.inf
    found = retrieval(np.ones((3, 3), np.float32), texts, range(3))
    assert found.image_to_text.tolist() == [3, 3, 3]
    assert found.text_to_image[0] == 3


def test_no_pairs_have_no_median() -> None:
    found = retrieval(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), [])
    assert np.isnan([found.image_to_text_median, found.text_to_image_median]).all()
    assert all(np.isnan(measure.value) for measure in found.measures())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    images, texts = draw.normal(size=(2, 50, 4)).astype(np.float32)
    captions = draw.integers(0, 30, 50).tolist()
    whole = retrieval(images, texts, captions)
    monkeypatch.setattr(module, "_CHUNK", 70)
    parts = retrieval(images, texts, captions)
    assert np.array_equal(whole.image_to_text, parts.image_to_text)
    assert np.array_equal(whole.text_to_image, parts.text_to_image)
    assert whole.image_to_text.max() <= len(set(captions))
