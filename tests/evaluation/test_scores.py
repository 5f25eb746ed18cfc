import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation import read_predictions, read_references, score

REFERENCES = {
    "a": ["A small nodule in the left lung.", "Left lung nodule."],
    "b": ["Normal chest radiograph of an adult."],
    "c": ["Axial CT of the liver with a cyst."],
}
PERFECT = {image: captions[0] for image, captions in REFERENCES.items()}
CAPTIONS = st.text(alphabet="abc .,", max_size=12)


def test_official_example_without_java(
    shared_data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    folder = shared_data / "caption-eval/coco_fakecap"
    scores = score(
        read_predictions(folder / "captions_val2014_fakecap_results.json"),
        read_references(folder / "captions_val2014_1000.json"),
    )
    golden = json.loads((folder / "golden_scores.json").read_text(encoding="utf-8"))
    names = {"bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4"}
    names |= {"rouge_l": "ROUGE_L", "cider_d": "CIDEr"}
    assert list(scores.metrics) == list(names)
    assert scores.metrics == pytest.approx({ours: golden["scores"][theirs] for ours, theirs in names.items()}, abs=1e-9)
    assert (scores.images, scores.references, scores.notes) == (1000, 5005, ())
    for image, row in scores.per_image.items():
        expected = golden["per_image"][image]
        assert row == pytest.approx({name: expected[names[name]] for name in row}, abs=1e-9)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("edge_cases", 1e-9), ("nlgeval", 1e-9), ("abstract200_5refs", 1e-9), ("roco400_singleref", 5e-3)],
)
def test_golden_sets_from_raw_captions(shared_data: Path, name: str, tolerance: float) -> None:
    golden = json.loads((shared_data / f"caption-eval/golden/{name}.json").read_text(encoding="utf-8"))
    predictions = {image: captions[0] for image, captions in golden["candidates"].items()}
    metrics = score(predictions, golden["references"]).metrics
    names = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert list(metrics.values()) == pytest.approx([golden["scores"][theirs] for theirs in names], abs=tolerance)


def test_perfect_captions_reach_the_top() -> None:
    scores = score(PERFECT, {image: captions[:1] for image, captions in REFERENCES.items()})
    assert list(scores.metrics.values()) == pytest.approx([1, 1, 1, 1, 1, 10])
    assert scores.per_image["b"] == pytest.approx({"bleu4": 1, "rouge_l": 1, "cider_d": 10})


def test_an_empty_caption_scores_zero_and_is_counted() -> None:
    scores = score({**PERFECT, "b": "..."}, REFERENCES)
    assert scores.per_image["b"] == {"bleu4": 0, "rouge_l": 0, "cider_d": 0}
    assert "1 caption without a word, scored 0" in scores.notes


def test_all_captions_empty() -> None:
    assert score(dict.fromkeys(REFERENCES, ""), REFERENCES).metrics == {
        **{f"bleu{order}": 0 for order in (1, 2, 3, 4)},
        "rouge_l": 0,
        "cider_d": 0,
    }


def test_an_empty_reference_is_left_out_and_counted() -> None:
    padded = {**REFERENCES, "a": ["", *REFERENCES["a"], " . "]}
    scores = score(PERFECT, padded)
    assert scores.metrics == score(PERFECT, REFERENCES).metrics
    assert scores.references == 4
    assert "2 of 6 references are empty and left out" in scores.notes


@pytest.mark.parametrize("captions", [[], [""], ["", "..."]])
def test_an_image_without_a_usable_reference_is_an_error(captions: list[str]) -> None:
    with pytest.raises(UsageError, match="1 image with empty references only: b"):
        score({**PERFECT, "b": ""}, {**REFERENCES, "b": captions})


def test_cider_is_null_for_one_image() -> None:
    scores = score({"a": "left lung"}, {"a": ["left lung"]})
    assert scores.metrics["cider_d"] is None
    assert scores.metrics["rouge_l"] == 1
    assert any("cider_d is not defined" in note and "one image" in note for note in scores.notes)
    assert "cider_d" not in scores.per_image["a"]


def test_cider_is_null_where_all_references_are_the_same() -> None:
    scores = score({"a": "normal chest", "b": "fracture"}, {"a": ["Normal chest."], "b": ["normal  chest"]})
    assert scores.metrics["cider_d"] is None
    assert any("all references are the same" in note for note in scores.notes)


def test_short_references_are_noted() -> None:
    scores = score({"a": "left lung", "b": "right kidney"}, {"a": ["left lung"], "b": ["right kidney"]})
    assert scores.metrics["cider_d"] == pytest.approx(5)
    assert any("2 of 2 references are under 4 words" in note for note in scores.notes)


def test_missing_predictions_are_listed() -> None:
    references = {f"image{number}": ["a chest radiograph"] for number in range(8)}
    with pytest.raises(UsageError) as caught:
        score({"image3": "a chest"}, references)
    assert "7 images without a prediction: image0, image1, image2, image4, image5 and 2 more" in str(caught.value)


def test_missing_predictions_as_zero_equal_empty_captions() -> None:
    some = {"a": PERFECT["a"], "b": PERFECT["b"]}
    zero = score(some, REFERENCES, missing="zero")
    assert zero.metrics == score({**some, "c": ""}, REFERENCES).metrics
    assert zero.images == 3
    assert "1 image without a prediction, scored as an empty caption" in zero.notes


def test_missing_predictions_skipped_keep_the_idf_of_the_whole_set() -> None:
    whole = score(PERFECT, REFERENCES)
    part = score({"a": PERFECT["a"]}, REFERENCES, missing="skip")
    assert part.images == 1
    assert part.references == 2
    assert part.per_image == {"a": whole.per_image["a"]}
    assert part.metrics["cider_d"] == whole.per_image["a"]["cider_d"]
    assert "|idf:references,3|n:1|" in part.signature
    assert any("1 of 3 images" in note for note in part.notes)


def test_unknown_ids_and_no_predictions_are_errors() -> None:
    with pytest.raises(UsageError, match="1 prediction without a reference: z"):
        score({**PERFECT, "z": "a chest"}, REFERENCES)
    with pytest.raises(UsageError, match="no predictions"):
        score({}, REFERENCES)


def test_a_string_for_a_list_of_references_is_refused() -> None:
    with pytest.raises(UsageError, match="give a list"):
        score({"a": "left lung"}, {"a": "left lung"})


def test_both_empty_is_never_one() -> None:
    scores = score({"a": "", "b": "x"}, {"a": ["", "left lung"], "b": ["x"]})
    assert scores.per_image["a"] == {"bleu4": 0, "rouge_l": 0, "cider_d": 0}


def test_signature_tells_data_apart() -> None:
    other = {**REFERENCES, "b": ["Normal chest radiograph of a child."]}
    one, two = score(PERFECT, REFERENCES).signature, score(PERFECT, other).signature
    assert one.split("|data:")[0] == two.split("|data:")[0]
    assert one != two
    for part in ("tok:coco-nltk", "idf:references,3", "n:3", "pycocoevalcap:"):
        assert part in one


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=3).map(lambda captions: [*captions, "a b"])),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_order_changes_no_number_and_ranges_hold(rows: list[tuple[str, list[str]]], random: Random) -> None:
    predictions = {str(image): caption for image, (caption, _) in enumerate(rows)}
    references = {str(image): captions for image, (_, captions) in enumerate(rows)}
    scores = score(predictions, references)
    ids = list(predictions)
    random.shuffle(ids)
    shuffled = score(
        {image: predictions[image] for image in ids},
        {image: random.sample(references[image], len(references[image])) for image in reversed(ids)},
    )
    assert shuffled == scores
    for name, value in scores.metrics.items():
        assert value is None or -1e-9 <= value <= (10 if name == "cider_d" else 1) + 1e-9


def test_ids_may_be_whole_numbers() -> None:
    numbered = {int(key, 16): caption for key, caption in PERFECT.items()}
    as_text = score({str(key): c for key, c in numbered.items()}, {str(int(k, 16)): c for k, c in REFERENCES.items()})
    mixed = score(numbered, {str(int(key, 16)): captions for key, captions in REFERENCES.items()})
    assert replace(mixed, signature="") == replace(as_text, signature="")


def test_importing_and_scoring_load_no_torch() -> None:
    code = (
        "import sys, grrcoca_cli.evaluation as e\n"
        "heavy = {'torch', 'numpy', 'nltk', 'pycocoevalcap', 'pydicom', 'monai'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "e.score({'a': 'x'}, {'a': ['x']})\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
