"""The clinical proxies: what they must catch, what they must leave alone, and their arithmetic."""

import re
from pathlib import Path

import pytest

from grrcoca_cli.evaluation.clinical import clinical_proxies, conflicts, mentions, modality_of

SWAPPED = {"left": "right", "right": "left"}


def swapped(caption: str) -> str:
    return re.sub(r"\b(left|right)\b", lambda found: SWAPPED[found.group().lower()], caption, flags=re.IGNORECASE)


def between(caption: str, *references: str) -> list[str]:
    return conflicts(mentions(caption), [mentions(reference) for reference in references])


@pytest.mark.parametrize(
    ("caption", "reference", "kinds"),
    [
        ("Right pleural effusion.", "Left pleural effusion.", ["side"]),
        ("Rt. kidney stone", "a stone in the left kidney", ["side"]),
        ("right kidney and left ureter", "left kidney and right ureter", ["side"]),
        ("Axial (right) and coronal (left) CT", "Axial (left) and coronal (right) CT", ["side"]),
        ("right-to-left shunt", "left-to-right shunt", ["side", "negation"][:1]),
        ("Pneumothorax.", "No pneumothorax.", ["negation"]),
        ("There is no evidence of effusion or pneumothorax", "Large effusions", ["negation"]),
        ("The effusion was not seen", "An effusion was seen", ["negation"]),
        ("Oedema is absent", "edema", ["negation"]),
        ("MRI of the brain", "Computed tomography of the brain", ["modality"]),
        ("T2-weighted image", "Sonogram", ["modality"]),
        ("Coronal CT", "Axial CT", ["plane"]),
        ("PA view of the chest", "Lateral view of the chest", ["plane"]),
        ("a 5 cm mass", "a 3 cm mass", ["numbers"]),
        ("a 3 x 5 cm mass", "a 3 x 4 cm mass", ["numbers"]),
        ("disc prolapse at L3-L4", "disc prolapse at L4/5", ["numbers"]),
    ],
)
def test_contradictions(caption: str, reference: str, kinds: list[str]) -> None:
    assert between(caption, reference) == kinds
    assert between(reference, reference) == []


@pytest.mark.parametrize(
    ("caption", "reference"),
    [
        ("left lung", "both lungs, bilateral opacities"),
        ("The drain was left in place", "right pleural drain"),
        ("at right angles to the left femur", "left femur"),
        ("a mass", "left renal mass"),  # less is no contradiction
        ("a 30 mm mass", "a mass of 3 cm"),
        ("a 3,5 cm mass", "a 3.5-cm mass"),
        ("PET/CT", "CT of the chest"),
        ("CTA of the aorta", "CT angiography"),
        ("No fracture. Large effusion.", "effusion, no fracture"),
        ("without contrast, a mass", "mass without contrast"),
        ("lateral wall of the ventricle", "PA view of the chest"),
        ("T1 weighted MRI", "MRI at the level of T12"),
        ("", "left lung"),
        ("left lung", ""),
    ],
)
def test_no_contradiction(caption: str, reference: str) -> None:
    assert between(caption, reference) == []


def test_one_reference_that_agrees_is_enough() -> None:
    assert between("left effusion", "right effusion", "left effusion") == []
    assert between("left effusion", "right effusion", "effusion") == ["side"]


def test_the_arithmetic() -> None:
    predictions = {"b": "left mass on CT", "a": "right mass", "c": "no mass", "d": ""}
    references = {"a": ["left mass"], "b": ["left mass"], "c": ["a mass", "mass on MRI"], "d": ["right nodule"]}
    report = clinical_proxies(predictions, references)
    side, negation, modality = (report.kinds[kind] for kind in ("side", "negation", "modality"))
    assert (side.images, side.comparable, side.conflicts, side.rate) == (4, 2, 1, 0.5)
    assert (side.precision, side.recall) == (1 / 2, 1 / 3)
    assert (negation.comparable, negation.conflicts, negation.rate) == (3, 1, 1 / 3)
    assert (modality.comparable, modality.rate, modality.precision, modality.recall) == (0, None, 0, 0)
    assert report.per_image == {"a": ("side",), "b": (), "c": ("negation",), "d": ()}
    assert [measure.name for measure in report.measures][:2] == ["side_conflict", "negation_conflict"]
    assert report.measures[0].value == 0.5
    assert report.measures[0].parts.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]  # in the order of the ids
    assert report.as_json()["side"]["conflicts"] == 1


def test_the_modality_named_first() -> None:
    assert modality_of(["A mass.", "MRI and CT of the brain"]) == "MR"
    assert modality_of(["no word of it"]) == ""


def real_captions(shared_data: Path) -> list[str]:
    lines = [
        line
        for file in sorted((shared_data / "roco-v1-text").rglob("radiology/captions.txt"))
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")
    ]
    return [line.split("\t", 1)[1] for line in lines if "\t" in line]


def test_real_captions_with_sides_swapped_are_flagged(shared_data: Path) -> None:
    sided = [
        caption for caption in real_captions(shared_data) if re.search(r"\b(left|right)\b", caption, re.IGNORECASE)
    ]
    assert len(sided) > 1500
    flagged = sum("side" in between(swapped(caption), caption) for caption in sided)
    assert flagged / len(sided) >= 0.95


def test_unchanged_captions_are_not(shared_data: Path) -> None:
    captions = real_captions(shared_data)
    flagged = 0
    for caption in captions:
        sentences = re.split(r"(?<=[a-z)]{3}[.;])\s+", caption.strip())
        light = " ".join(sentences[1:] + sentences[:1]).upper().replace(" - ", " – ")
        flagged += bool(between(light, caption))
    assert flagged / len(captions) < 0.02


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("free fluid collection", ("collection", "present")),
        ("free of effusion", ("effusion", "denied")),
        ("gram-negative pneumonia", ("pneumonia", "present")),
        ("no change in effusion", ("effusion", "present")),
        ("no 5.2 cm mass", ("mass", "denied")),
    ],
)
def test_what_denies(text: str, mention: tuple[str, str]) -> None:
    assert mentions(text).values["negation"] == {mention}


def test_only_what_could_conflict_is_compared() -> None:
    predictions = {"1": "effusion", "2": "5 mm", "3": "effusion"}
    references = {"1": ["fracture"], "2": ["L4"], "3": ["no effusion"]}
    kinds = clinical_proxies(predictions, references).kinds
    assert (kinds["negation"].comparable, kinds["negation"].conflicts) == (1, 1)
    assert kinds["numbers"].comparable == 0
    assert (kinds["negation"].said, kinds["negation"].wanted, kinds["negation"].supported) == (2, 2, 0)


def test_very_long_captions_take_no_time() -> None:
    for piece in ("left ", "no mass, ", "3 x ", "l4-", "no "):
        mentions(piece * 40_000)  # a quadratic rule takes minutes here and runs into the time limit
