import json
import re
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
from grrcoca_cli.evaluation.idf import dump_idf, read_idf
from grrcoca_cli.evaluation.metrics import METRICS, PER_IMAGE
from grrcoca_cli.evaluation.tokenize import tokenizer

REFERENCES = {
    "a": ["A small nodule in the left lung.", "Left lung nodule."],
    "b": ["Normal chest radiograph of an adult."],
    "c": ["Axial CT of the liver with a cyst."],
}
PERFECT = {image: captions[0] for image, captions in REFERENCES.items()}
CAPTIONS = st.text(alphabet="abc .,", max_size=12)
COCO_NAMES = {"bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4"}
COCO_NAMES |= {"rouge_l": "ROUGE_L", "cider_d": "CIDEr"}


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
    assert tuple(scores.metrics) == METRICS
    assert (scores.images, scores.references, scores.notes) == (1000, 5005, ())
    for ours, theirs in COCO_NAMES.items():
        assert scores.metrics[ours] == pytest.approx(golden["scores"][theirs], rel=0, abs=1e-12)
    for image, row in scores.per_image.items():
        assert tuple(row) == PER_IMAGE
        for ours in ("bleu4", "rouge_l", "cider_d"):
            assert row[ours] == pytest.approx(golden["per_image"][image][COCO_NAMES[ours]], rel=0, abs=1e-12)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("edge_cases", 1e-9), ("nlgeval", 1e-9), ("abstract200_5refs", 1e-9), ("roco400_singleref", 5e-3)],
)
def test_golden_sets_from_raw_captions(shared_data: Path, name: str, tolerance: float) -> None:
    golden = json.loads((shared_data / f"caption-eval/golden/{name}.json").read_text(encoding="utf-8"))
    predictions = {image: captions[0] for image, captions in golden["candidates"].items()}
    metrics = score(predictions, golden["references"]).metrics
    for ours, theirs in COCO_NAMES.items():
        assert metrics[ours] == pytest.approx(golden["scores"][theirs], abs=tolerance)


def test_perfect_captions_reach_the_top() -> None:
    scores = score(PERFECT, {image: captions[:1] for image, captions in REFERENCES.items()})
    assert list(scores.metrics.values()) == pytest.approx([1, 1, 1, 1, 1, 10, 1, 100])
    assert list(scores.per_image["b"].values()) == pytest.approx([1, 1, 10, 1, 100])


def test_an_empty_caption_scores_zero_and_is_counted() -> None:
    scores = score({**PERFECT, "b": "..."}, REFERENCES)
    assert scores.per_image["b"] == dict.fromkeys(PER_IMAGE, 0)
    assert "1 caption without a word, scored 0" in scores.notes


def test_all_captions_empty() -> None:
    assert score(dict.fromkeys(REFERENCES, ""), REFERENCES).metrics == dict.fromkeys(METRICS, 0)


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
    assert part.ids == ("a",)
    assert {measure.name: measure.value for measure in part.measures} == part.metrics
    assert "1 of 3 images are scored" in part.notes


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
    assert scores.per_image["a"] == dict.fromkeys(PER_IMAGE, 0)


def test_signature_tells_data_apart() -> None:
    other = {**REFERENCES, "b": ["Normal chest radiograph of a child."]}
    one, two = score(PERFECT, REFERENCES).signature, score(PERFECT, other).signature
    assert one.split("|data:")[0] == two.split("|data:")[0]
    assert one != two
    for part in ("bleu:coco,closest,unsmoothed", "metrics:grrcoca1", "tok:coco.1", "idf:references,3", "n:3"):
        assert part in one.split("|")


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
    assert replace(shuffled, measures=()) == replace(scores, measures=())
    assert scores.ids == tuple(sorted(predictions))
    for name, value in scores.metrics.items():
        assert value is None or -1e-9 <= value <= {"cider_d": 10, "chrf": 100}.get(name, 1) + 1e-9


def test_ids_may_be_whole_numbers() -> None:
    numbered = {int(key, 16): caption for key, caption in PERFECT.items()}
    as_text = score({str(key): c for key, c in numbered.items()}, {str(int(k, 16)): c for k, c in REFERENCES.items()})
    mixed = score(numbered, {str(int(key, 16)): captions for key, captions in REFERENCES.items()})
    assert replace(mixed, signature="", measures=()) == replace(as_text, signature="", measures=())


def test_an_id_as_number_and_as_text_is_twice_the_same() -> None:
    twice = {**PERFECT, 1: "a chest", "1": "a chest"}
    with pytest.raises(UsageError, match="1 id twice among the predictions, as number and as text: 1"):
        score(twice, REFERENCES)
    with pytest.raises(UsageError, match="1 id twice among the references"):
        score(PERFECT, {**REFERENCES, 1: ["a chest"], "1": ["a lung"]})


@pytest.mark.parametrize("separator", ["\u2028", "\r", "\r\n", "\x0b", "\x0c", "\n", "\u00a0", "\x85"])
def test_separators_inside_captions_shift_nothing(separator: str) -> None:
    parted = {image: caption.replace(" ", separator) for image, caption in PERFECT.items()}
    references = {
        image: [caption.replace(" ", separator) for caption in several] for image, several in REFERENCES.items()
    }
    expected = score(PERFECT, REFERENCES)
    for found in (score(parted, REFERENCES), score(PERFECT, references), score(parted, references)):
        assert found.metrics == pytest.approx(expected.metrics)
        assert found.notes == expected.notes


@pytest.mark.timeout(60)  # pycocoevalcap takes longer
def test_very_long_captions() -> None:
    random = Random(0)
    long = {image: " ".join(random.choice(["left", "lung", "mass"]) for _ in range(5000)) for image in "abcd"}
    scores = score(long, {image: [caption, "a mass"] for image, caption in long.items()})
    names = ("bleu4", "rouge_l", "imageclef_rouge1", "chrf")
    assert [scores.metrics[name] for name in names] == pytest.approx([1, 1, 1, 100])


def test_measures_have_their_parts_in_the_order_of_the_ids() -> None:
    scores = score({**PERFECT, "b": "a chest"}, REFERENCES)
    assert scores.ids == ("a", "b", "c")
    for measure in scores.measures:
        assert measure.value == scores.metrics[measure.name]
        if measure.name in PER_IMAGE:
            single = [scores.per_image[image][measure.name] for image in scores.ids]
            assert measure.finish(measure.parts).tolist() == single


def test_the_tokenizer_is_a_choice_and_stated() -> None:
    references = {"a": ["Left lung (arrow)"], "b": ["Normal chest"]}
    coco, other = (
        score({"a": "left lung arrow", "b": "normal chest"}, references, tokenizer=name)
        for name in ("coco", "coco-nobrackets")
    )
    assert coco.metrics["bleu1"] < other.metrics["bleu1"] == pytest.approx(1)
    assert "tok:coco-nobrackets.1" in other.signature.split("|")
    with pytest.raises(UsageError, match="tokenizer"):
        score(PERFECT, REFERENCES, tokenizer="latin")


def test_imageclef_rouge1_has_its_own_words() -> None:
    scores = score({"a": "Mass, 12mm", "b": "x"}, {"a": ["mass 5.5mm!"], "b": ["y"]})
    words = tokenizer("imageclef")
    ours, theirs = words("Mass, 12mm"), words("mass 5.5mm!")
    expected = 2 * len(set(ours) & set(theirs)) / (len(ours) + len(theirs))
    assert scores.per_image["a"]["imageclef_rouge1"] == pytest.approx(expected)
    assert scores.per_image["a"]["bleu4"] < expected


def test_saved_idf_of_the_same_references_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    path.write_text(dump_idf(REFERENCES), encoding="utf-8")
    predictions = {**PERFECT, "b": "Normal chest of a small child."}
    one, two = score(predictions, REFERENCES), score(predictions, REFERENCES, idf=read_idf(path))
    assert two.metrics == pytest.approx(one.metrics, abs=1e-12)
    assert two.per_image["b"] == pytest.approx(one.per_image["b"], abs=1e-12)
    assert re.search(r"\|idf:file-[0-9a-f]{12},3\|", two.signature)


def test_saved_idf_makes_cider_of_one_image_and_of_a_part_what_it_is_in_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    path.write_text(dump_idf(REFERENCES), encoding="utf-8")
    predictions = {**PERFECT, "b": "Normal chest of a child."}
    whole = score(predictions, REFERENCES)
    part = score({"b": predictions["b"]}, {"b": REFERENCES["b"]}, idf=read_idf(path))
    assert part.per_image["b"]["cider_d"] == pytest.approx(whole.per_image["b"]["cider_d"], abs=1e-12)


def test_saved_idf_of_one_image_defines_no_cider(tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    path.write_text(dump_idf({"a": ["left lung"]}), encoding="utf-8")
    scores = score(PERFECT, REFERENCES, idf=read_idf(path))
    assert scores.metrics["cider_d"] is None
    assert any("the saved idf comes from" in note for note in scores.notes)


def test_saved_idf_of_other_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    path.write_text(dump_idf(REFERENCES, tokenizer="whitespace"), encoding="utf-8")
    with pytest.raises(UsageError, match="tokenizer 'whitespace', not 'coco'"):
        score(PERFECT, REFERENCES, idf=read_idf(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a file of document frequencies"),
        ('{"schema": 1, "tokenizer": "coco", "images": 0, "counts": {}}', "'images'"),
        ('{"schema": 1, "tokenizer": "coco", "images": 2, "counts": {"a b": 3}}', "'a b' must be"),
        ('{"schema": 1, "tokenizer": "coco", "images": 2, "counts": {"a b c d e": 2}}', "must be 1 to 4 words"),
        ('{"schema": 1, "tokenizer": "coco", "images": 2, "counts": {"a": true}}', "'a' must be"),
    ],
)
def test_a_damaged_idf_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "idf.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_idf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_an_absent_idf_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: cannot be read"):
        read_idf(tmp_path / "none.json")


def test_importing_and_scoring_load_neither_torch_nor_pycocoevalcap() -> None:
    code = (
        "import sys, grrcoca_cli.evaluation as e\n"
        "e.score({'a': 'x'}, {'a': ['x']})\n"
        "heavy = {'torch', 'pycocoevalcap', 'pydicom', 'monai', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
