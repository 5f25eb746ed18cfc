"""Examples on disk give their numbers back, and metrics from them are those of sums."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.examples import Examples, batch_labels, measures_of, read_examples
from grrcoca_cli.evaluation.retrieval import Ranks

EXAMPLES = Examples(
    keys=["a", "b", "c"],
    parts=np.array([[2.0, 4, 11], [1 / 3, 1, 12], [6.0, 5, 13]]),
    contrastive=np.array([0.1, 0.3, math.nan]),
    ranks=Ranks(np.array([1, 2, 11]), np.array([1, 6, 1])),
    cider=np.array([0.5, 0.0, 1.0]),
    captions=["one", "two é", ""],
)


def values(*runs: Examples, contrastive: float = 1.0, caption: float = 2.0) -> dict[str, float]:
    return {measure.name: measure.value for measure in measures_of(runs, contrastive, caption)}


def test_a_file_gives_the_same_numbers_back(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(EXAMPLES.dump(), encoding="utf-8")
    found = read_examples(path)
    assert values(found) == values(EXAMPLES)
    assert (found.keys, found.captions) == (EXAMPLES.keys, EXAMPLES.captions)
    assert found.dump() == EXAMPLES.dump()


@pytest.mark.parametrize("content", ["", "{}", "[1]\n", "{"], ids=["empty", "no keys", "a list", "no JSON"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "examples.jsonl"
    if content:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"examples\.jsonl"):
        read_examples(path)


def test_metrics_are_ratios_of_sums() -> None:
    found = values(EXAMPLES)
    nll = 2 + 1 / 3 + 6
    assert found["contrastive_loss"] == pytest.approx(0.2)  # a last short batch has no part
    assert found["ppl_token"] == pytest.approx(math.exp(nll / 10))
    assert found["coca_loss"] == pytest.approx(0.2 + 2 * nll / 10)
    assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / 36)
    assert (found["image_to_text_r1"], found["image_to_text_r5"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["text_to_image_r10"] == 1
    assert found["cider_d"] == pytest.approx(0.5)


def test_runs_are_summed_example_by_example() -> None:
    other = replace(EXAMPLES, contrastive=EXAMPLES.contrastive + 1, cider=EXAMPLES.cider + 1)
    found = values(EXAMPLES, other)
    assert found["contrastive_loss"] == pytest.approx(0.7)
    assert found["cider_d"] == pytest.approx(1.0)
    assert found["ppl_token"] == values(EXAMPLES)["ppl_token"]


def test_what_was_not_trained_is_left_out() -> None:
    assert values(EXAMPLES, caption=0.0).keys() == {
        "contrastive_loss",
        *(f"{direction}_r{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    }
    assert values(EXAMPLES, contrastive=0.0).keys() == {"ppl_token", "caption_loss", "bits_per_byte", "cider_d"}


def test_a_batch_stays_together() -> None:
    assert batch_labels(EXAMPLES, 2) == ["0", "0", "1"]
