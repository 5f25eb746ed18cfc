"""The clinical proxies: what they must catch, what they must leave alone, and their arithmetic."""

import re
from collections.abc import Callable
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
        ("right-to-left shunt", "left-to-right shunt", ["side"]),
        ("RA: left atrium; LA: right atrium", "RA: right atrium; LA: left atrium", ["side"]),
        ("bilateral opacities, right more than left", "bilateral opacities, left more than right", ["side"]),
        ("bilateral pleural effusions", "left pleural effusion", ["side"]),
        ("Right upper and left lower lobe", "Left upper and right lower lobe", ["side"]),
        ("Pneumothorax.", "No pneumothorax.", ["negation"]),
        ("There is no evidence of effusion or pneumothorax", "Large effusions", ["negation"]),
        ("The effusion was not seen", "An effusion was seen", ["negation"]),
        ("Oedema is absent", "edema", ["negation"]),
        ("The abscess is no longer seen", "an abscess", ["negation"]),
        ("No tear, deformity, or retraction.", "A deformity.", ["negation"]),
        ("a mass without contrast enhancement", "contrast enhancement of the mass", ["negation"]),
        ("MRI of the brain", "Computed tomography of the brain", ["modality"]),
        ("T2-weighted image", "Sonogram", ["modality"]),
        ("Renal US", "Renal CT", ["modality"]),
        ("Computer tomography", "mammograms", ["modality"]),
        ("Coronal CT", "Axial CT", ["plane"]),
        ("PA view of the chest", "Lateral view of the chest", ["plane"]),
        ("Transverse T2 image", "sagittal T2 image", ["plane"]),
        ("a 5 cm mass", "a 3 cm mass", ["numbers"]),
        ("a 3 x 5 cm mass", "a 3 x 4 cm mass", ["numbers"]),
        ("two large masses", "3 masses", ["numbers"]),
        ("a single stent", "two stents", ["numbers"]),
        ("a 45-year-old man", "a woman, 54 years old", ["numbers"]),
        ("a stenosis of 75%", "a stenosis of 50 percent", ["numbers"]),
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
        ("left and right kidneys", "right and left kidneys"),
        ("left-handed patient", "fracture of the right hand"),
        ("right upper lobe mass", "left upper paratracheal node, right lung mass"),
        ("left effusion", "bilateral effusions"),
        ("Chest CT: right lung", "Chest CT: left kidney and right lung"),
        ("No fracture, large effusion", "effusion"),
        ("No significant stenosis", "no stenosis"),
        ("No filling of the aneurysm", "aneurysm"),
        ("The neck of the aneurysm was not angulated", "aneurysm"),
        ("barium study", "X-ray after barium"),
        ("let us see the lung", "CT of the lung"),
        ("transverse colon on coronal CT", "coronal view"),
        ("thrombosis of the sagittal sinus, axial view", "axial view"),
        ("AP and lateral radiographs", "PA view"),
        ("a 4 cm mass", "2 cm and 4 cm masses"),
        ("two weeks after", "2 weeks after"),
        ("level 2 lymph nodes", "three lymph nodes"),
        ("a 2 cm stone", "two stones"),
        ("a 5 x 3 cm mass", "a 5 cm mass"),
        ("disc at L4", "disc at L4-L5"),
        ("the patient's 5 mm stone", "L4"),
        ("", "left lung"),
        ("left lung", ""),
        (" .", "no effusion"),
    ],
)
def test_no_contradiction(caption: str, reference: str) -> None:
    assert between(caption, reference) == []


def test_one_reference_that_agrees_is_enough() -> None:
    assert between("left effusion", "right effusion", "left effusion") == []
    assert between("left effusion", "right effusion", "effusion") == ["side"]
    assert between("right effusion", "left effusion", "right nodule") == ["side"]  # no one saw it on the right
    assert between("no effusion", "effusion", "no effusion, mass") == []
    assert between("a 3 cm mass", "a mass of 25 mm", "a mass of 30 mm") == []
    assert between("left effusion") == []


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


def rotated(caption: str) -> str:
    sentences = re.split(r"(?<=[a-z)]{3}[.;])\s+", caption.strip())
    return " ".join(sentences[1:] + sentences[:1])


@pytest.mark.parametrize(
    "light",
    [
        str,
        lambda caption: rotated(caption).upper().replace(" - ", " – "),
        lambda caption: re.sub(r"[()]", ",", rotated(caption).lower()).replace(";", "."),
        lambda caption: re.sub(r"(?<!\d)[.,;:](?!\d)", "", caption),
    ],
    ids=["same", "upper", "lower", "no-marks"],
)
def test_unchanged_captions_are_not(shared_data: Path, light: Callable[[str], str]) -> None:
    captions = real_captions(shared_data)
    flagged = sum(bool(between(light(caption), caption)) for caption in captions)
    assert flagged / len(captions) < (0.005 if light is not str else 1e-9)


def of_kind(captions: list[str], kind: str, last: str) -> list[str]:
    return [caption for caption in captions if any(mention[-1] == last for mention in mentions(caption).values[kind])]


def test_real_captions_with_another_meaning_are_flagged(shared_data: Path) -> None:
    captions = real_captions(shared_data)
    denial = re.compile(r"\b(?:no longer|no evidence of|absence of|without|not|no|free of|nor|neither) ", re.IGNORECASE)
    denying = of_kind(captions, "negation", "denied")
    stated = [caption for caption in denying if "negation" in between(denial.sub("", caption), caption)]
    assert len(stated) / len(denying) >= 0.9 > 100 / len(denying)

    by_ct = [each for each in captions if mentions(each).values["modality"] == {("modality", "CT")}]
    ct = re.compile(r"\b[A-Z]*CTs?\b|comput\w+[ -](?:axial )?tomogra\w+", re.IGNORECASE)
    assert len(by_ct) > 1000
    assert sum("modality" in between(ct.sub("MRI", caption), caption) for caption in by_ct) / len(by_ct) >= 0.99

    length = re.compile(r"(?<![\d.,x×–*-])(?<![x×*]\s)(\d+(?:\.\d+)?) ?(mm|cm)\b(?!\s?[x×*])")
    sized = [caption for caption in captions if len(length.findall(caption)) == 1]
    larger = [length.sub(lambda size: f"{float(size[1]) * 1.5 + 1:g} {size[2]}", caption) for caption in sized]
    assert len(sized) > 100
    assert sum("numbers" in between(*pair) for pair in zip(larger, sized, strict=True)) / len(sized) >= 0.95
    in_mm = [
        length.sub(lambda size: f"{float(size[1]) * (1 if size[2] == 'mm' else 10):g} mm", caption) for caption in sized
    ]
    assert [pair for pair in zip(in_mm, sized, strict=True) if between(*pair)] == []


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("free fluid collection", ("collection", "present")),
        ("free of effusion", ("effusion", "denied")),
        ("gram-negative pneumonia", ("pneumonia", "present")),
        ("cystogram negative for a leak", ("leak", "denied")),
        ("CT without contrast showing a mass", ("mass", "present")),
        ("no contrast leak", ("leak", "denied")),
        ("no evidence of new fractures", ("fracture", "denied")),
        ("a leak could not be identified", ("leak", "denied")),
        ("the tumour is not well seen", ("tumor", "present")),
        ("vessels with absent flow and an echogenic thrombus", ("thrombus", "present")),
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
    for piece in ("left ", "no mass, ", "3 x ", "l4-", "no ", "ap and ", "and left ", "two "):
        mentions(piece * 40_000)  # a quadratic rule takes minutes here and runs into the time limit
