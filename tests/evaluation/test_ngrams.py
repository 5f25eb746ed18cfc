import json
from math import exp, sqrt
from pathlib import Path

import pytest

from grrcoca_cli.evaluation.ngrams import all_alike, bleu, cider_d, rouge_l


def split(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_bleu_by_hand() -> None:
    corpus, per_image = bleu(split("a b c d e"), [split("a b c d f", "x y")])
    expected = [0.8, sqrt(0.8 * 0.75), (0.8 * 0.75 * 2 / 3) ** (1 / 3), (0.8 * 0.75 * 2 / 3 * 0.5) ** (1 / 4)]
    assert corpus == pytest.approx(expected, abs=1e-8)
    assert [scores[0] for scores in per_image] == pytest.approx(expected, abs=1e-8)


def test_bleu_clips_counts_and_punishes_brevity() -> None:
    assert bleu(split("the the the the"), [split("the cat")])[0][0] == pytest.approx(1 / 4)
    assert bleu(split("a b"), [split("a b c d")])[0][0] == pytest.approx(exp(1 - 4 / 2))
    assert bleu(split("a b"), [split("a b c d", "x y")])[0][0] == pytest.approx(1)  # the closest length counts


def test_bleu_sums_before_it_divides() -> None:
    corpus, per_image = bleu(split("a b c d", "x"), [split("a b c d"), split("y")])
    assert corpus[0] == pytest.approx(4 / 5)
    assert per_image[0] == pytest.approx([1, 0], abs=1e-8)


def test_rouge_l_by_hand() -> None:
    precision, recall = 2 / 3, 2 / 4
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(split("a b c", ""), [split("a c d e"), split("a")]) == pytest.approx([expected, 0])


def test_cider_d_by_hand() -> None:
    scores = cider_d(split("a b", "e f g h"), [split("a b c d"), split("e f g h")])
    cosines = [1 / sqrt(2), 1 / sqrt(3), 0, 0]
    assert scores == pytest.approx([10 * sum(cosines) / 4 * exp(-((1 - 3) ** 2) / (2 * 6**2)), 10])


def test_all_alike() -> None:
    assert all_alike([split("a b")])
    assert all_alike([split("a b", "c"), split("c", "a b")])
    assert not all_alike([split("a b"), split("a b"), split("b a")])


@pytest.mark.parametrize("name", ["edge_cases", "nlgeval", "abstract200_5refs", "roco400_singleref"])
def test_pycocoevalcaps_own_numbers(shared_data: Path, name: str) -> None:
    golden = json.loads((shared_data / f"caption-eval/golden/{name}.json").read_text(encoding="utf-8"))
    ids = list(golden["tokenized_references"])
    candidates = split(*(golden["tokenized_candidates"][image][0] for image in ids))
    references = [split(*golden["tokenized_references"][image]) for image in ids]
    corpus, per_image = bleu(candidates, references)
    rouge, cider = rouge_l(candidates, references), cider_d(candidates, references)

    expected, expected_image = golden["scores"], [golden["per_image"][image] for image in ids]
    assert corpus == pytest.approx([expected[f"Bleu_{order}"] for order in (1, 2, 3, 4)], abs=1e-12)
    assert sum(rouge) / len(ids) == pytest.approx(expected["ROUGE_L"], abs=1e-12)
    assert sum(cider) / len(ids) == pytest.approx(expected["CIDEr"], abs=1e-12)
    for order, scores in enumerate(per_image, start=1):
        assert scores == pytest.approx([image[f"Bleu_{order}"] for image in expected_image], abs=1e-12)
    assert rouge == pytest.approx([image["ROUGE_L"] for image in expected_image], abs=1e-12)
    assert cider == pytest.approx([image["CIDEr"] for image in expected_image], abs=1e-12)
