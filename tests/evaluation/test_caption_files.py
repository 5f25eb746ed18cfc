import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation import align, read_columns, read_predictions, read_references
from grrcoca_cli.evaluation.inputs import file_names

COCO_RESULTS = '[{"image_id": 1, "caption": "left lung"}, {"image_id": 2, "caption": "Ärm"}]'
Write = Callable[[str, str | bytes], Path]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(name: str, text: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", COCO_RESULTS),
        ("r.json", "\ufeff" + COCO_RESULTS),
        (
            "r.json",
            '{"annotations": [{"id": 7, "image_id": 1, "caption": "left lung"},'
            ' {"id": 8, "image_id": "2", "caption": "Ärm"}]}',
        ),
        ("r.json", '{"1": "left lung", "2": ["Ärm"]}'),
        ("r.jsonl", '{"id": 1, "text": "left lung"}\r\n\r\n{"key": "2", "Caption": "Ärm"}\n'),
        ("r.json", '{"id": 1, "text": "left lung"}\n{"image": 2, "prediction": "Ärm"}'),
        ("r.csv", "ID,Caption\n1,left lung\n2,Ärm\n"),
        ("r.csv", "\ufefffile;score;caption\r\n1;0,5;left lung\r\n\r\n2;1;Ärm\r\n"),
        ("r.tsv", "image_id\ttext\n1\tleft lung\n2\tÄrm"),
        ("r.csv", 'file,caption,error\n1,"left lung",\n2,Ärm,\n3,,truncated\n'),
        (
            "r.jsonl",
            '{"file": "1", "caption": "left lung"}\n{"file": "2", "caption": "Ärm", "error": null}\n'
            '{"file": "3", "error": "truncated"}',
        ),
    ],
)
def test_every_form_gives_the_same_predictions(write: Write, name: str, text: str) -> None:
    assert read_predictions(write(name, text)) == {"1": "left lung", "2": "Ärm"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "r.json",
            '{"annotations": [{"image_id": 1, "caption": "b"}, {"image_id": 2, "caption": "c"},'
            ' {"image_id": 1, "caption": "a"}]}',
        ),
        ("r.json", '{"1": ["b", "a"], "2": "c"}'),
        ("r.jsonl", '{"id": 1, "references": ["b", "a"], "caption": "ours"}\n{"id": "2", "reference": "c"}'),
        ("r.csv", "key,caption,reference\n1,ours,b\n2,ours,c\n1,ours,a\n"),
    ],
)
def test_every_form_gives_the_same_references(write: Write, name: str, text: str) -> None:
    assert read_references(write(name, text)) == {"1": ["b", "a"], "2": ["c"]}


def test_lines_that_report_an_error_are_counted(write: Write) -> None:
    notes: list[str] = []
    path = write("p.csv", "file,caption,error\na.png,chest,\nb.png,,truncated\nc.png,,not an image\n")
    assert read_predictions(path, notes=notes) == {"a.png": "chest"}
    assert notes == ["2 of the predictions' rows are errors without a caption, and left out"]


def test_an_empty_caption_without_an_error_stays(write: Write) -> None:
    assert read_predictions(write("p.csv", "file,caption\na,\n")) == {"a": ""}
    assert read_predictions(write("p.jsonl", '{"file": "a", "caption": null}')) == {"a": ""}


def test_the_same_prediction_twice_is_noted_and_a_different_one_refused(write: Write) -> None:
    notes: list[str] = []
    assert read_predictions(write("p.csv", "id,caption\n1,x\n1,x\n"), notes=notes) == {"1": "x"}
    assert notes == ["1 of the predictions' rows repeat a caption word for word, and count once"]
    for name, text in (("p.csv", "id,caption\n1,x\n1,y\n"), ("p.json", '{"1": ["x", "y"]}')):
        with pytest.raises(UsageError, match="second, different caption for '1'"):
            read_predictions(write(name, text))
    with pytest.raises(UsageError, match="key '1' is there twice"):
        read_predictions(write("p.json", '{"1": "x", "1": "y"}'))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.csv",
            "id,captoin\n1,x\n",
            "line 2: no column for the caption among 'id', 'captoin'; did you mean 'caption'",
        ),
        ("p.csv", "name,caption\n1,x\n", "line 2: no column for the image's id among 'name', 'caption'; name it"),
        ("p.csv", "id,caption\n1,x\n2,left, right\n", "line 3: 3 fields where the header has 2"),
        ("p.csv", 'id,caption\n1,"x\n', "not valid CSV"),
        ("p.csv", "id,caption\n,x\n", "line 2: the image's id must be"),
        ("p.csv", "id,caption\n", "there are no captions in it"),
        ("p.csv", "id,caption,error\n1,,truncated\n", "all of its 1 rows are errors"),
        ("p.jsonl", '{"id": 1, "caption": "x"}\n{"id": 2, "caption": \n', "line 2: not valid JSON"),
        ("p.jsonl", '{"id": 1, "caption": "x"}\n[1]\n', "line 2: expected an object"),
        ("p.jsonl", '{"id": 1, "caption": "x"}\n{"id": true, "caption": "x"}', "line 2: the image's id must be"),
        ("p.jsonl", '{"id": 1, "caption": "x"}\n{"id": 2, "caption": 3}', "line 2: 'caption' must be a text"),
        ("p.json", '[{"id": 1,\n "caption": x}]', "line 2: not valid JSON"),
        ("p.json", '[{"id": 1}]', "entry 1: no column for the caption among 'id'"),
        ("p.json", '{"annotations": [{"image_id": 1}]}', "annotation 1: no column for the caption"),
        ("p.json", '{"1": {"a": 2}}', "key '1': 'caption' must be a text"),
        ("p.json", "[]", "no captions in it"),
        ("p.json", "{}", "no captions in it"),
        ("p.json", "[" * 100_000, "cannot be read as JSON"),
        ("p.md", "a chest\n", "the form of this file is not known"),
        ("p.json", "", "the file is empty"),
        ("p.csv", "\ufeff \n", "the file is empty"),
        ("p.csv", b"\x89PNG\r\n\x1a\n", "not UTF-8 text"),
        ("p.csv", b"a\0b", "a binary file"),
    ],
)
def test_faults_are_one_line_that_names_the_file(write: Write, name: str, text: str | bytes, message: str) -> None:
    path = write(name, text)
    with pytest.raises(UsageError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_references_without_rows(write: Write) -> None:
    with pytest.raises(UsageError, match="no captions in it"):
        read_references(write("r.csv", "id,caption\n"))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_predictions(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        read_references(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.integers(0, 99).map(str), TEXT, min_size=1, max_size=5))
def test_any_caption_survives_each_form(tmp_path: Path, captions: dict[str, str]) -> None:
    rows = [{"file": image, "caption": caption} for image, caption in captions.items()]
    table, lines = tmp_path / "c.csv", tmp_path / "c.jsonl"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    assert read_predictions(table) == captions
    assert read_predictions(lines) == captions
    assert read_references(table) == {image: [caption] for image, caption in captions.items()}


def test_vqa_rad_references(shared_data: Path) -> None:
    references = read_references(shared_data / "vqa-rad-cc0/test_captions.csv")
    assert len(references) == 20
    assert all(len(captions) == 1 and captions[0] for captions in references.values())


@pytest.mark.parametrize(
    ("predicted", "known"),
    [
        ("/data/images/synpic1.jpg", "synpic1"),
        ("synpic1.JPG", "synpic1"),
        ("synpic1", "images/synpic1.png"),
        ("other\\synpic1.dcm", "synpic1.png"),
        ("folder/1.2.840.10008", "1.2.840.10008"),
    ],
)
def test_ids_are_matched_by_file_name(predicted: str, known: str) -> None:
    notes: list[str] = []
    assert align({predicted: "x"}, {known: ["y"]}, notes=notes) == {known: "x"}
    assert notes == ["1 of 1 predictions are matched by file name without folder and extension"]


def test_equal_ids_are_left_alone() -> None:
    notes: list[str] = []
    references = {"x/a.png": ["1"], "y/a.png": ["2"]}
    assert align({"x/a.png": "p"}, references, notes=notes) == {"x/a.png": "p"}
    assert align({"b": "p", "y/a.png": "q"}, references, notes=notes) == {"b": "p", "y/a.png": "q"}
    assert align({"1": "p"}, {"2": ["r"]}, notes=notes) == {"1": "p"}
    assert notes == []


def test_ambiguous_file_names_are_refused() -> None:
    with pytest.raises(UsageError, match="fits 2 references"):
        align({"a.dcm": "p"}, {"x/a.png": ["1"], "y/a.png": ["2"]})
    with pytest.raises(UsageError, match="fit one reference, 'a'"):
        align({"x/a.png": "p", "y/a.png": "q"}, {"a": ["1"]})
    with pytest.raises(UsageError, match="fit one reference, 'a'"):
        align({"a": "p", "y/a.png": "q"}, {"a": ["1"]})


def test_plain_text_is_matched_line_by_line(write: Write) -> None:
    predictions = read_predictions(write("p.txt", "left lung\r\n\n[arrow] Ärm\n"))
    assert predictions == {"1": "left lung", "2": "", "3": "[arrow] Ärm"}
    first, second = write("r1.txt", "a\nb\nc\n"), write("r2.txt", "d\n\nf")
    assert read_references(first, second) == {"1": ["a", "d"], "2": ["b", ""], "3": ["c", "f"]}
    with pytest.raises(UsageError, match=r"3 lines in .*r1\.txt against 2 lines in .*short\.txt"):
        read_references(first, write("short.txt", "a\nb\n"))
    assert read_predictions(write("json.txt", '{"id": 7, "caption": "x"}\n')) == {"7": "x"}


def test_text_of_the_caption_command_keeps_its_ids(write: Write) -> None:
    notes: list[str] = []
    text = "studies/a.dcm\tleft lung\n\nmy scans/b.dcm#3\t\nc.dcm\ta\tb\r\n"
    expected = {"studies/a.dcm": "left lung", "my scans/b.dcm#3": "", "c.dcm": "a\tb"}
    assert read_predictions(write("c.txt", text), notes=notes) == expected
    assert notes == ["c.txt is read as a file, a tab and its caption in each line"]
    assert read_predictions(write("c.out", text)) == expected
    assert read_references(write("c.txt", text)) == {image: [caption] for image, caption in expected.items()}
    assert read_predictions(write("h.txt", "ID\tCaption\na\tleft lung\n")) == {"a": "left lung"}


def test_a_tab_in_some_lines_of_plain_text_is_noted(write: Write) -> None:
    notes: list[str] = []
    assert read_predictions(write("c.txt", "a\tb\nc\n"), notes=notes) == {"1": "a\tb", "2": "c"}
    assert notes == ["c.txt is read as one caption per line; tabs in 1 of 2 lines"]


def test_coco_file_names_lead_to_the_references(write: Write) -> None:
    listed = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (7, 8)]
    annotations = [{"id": 1, "image_id": "7", "caption": "a lung"}, {"id": 2, "image_id": 8, "caption": "a hand"}]
    path = write("coco.json", json.dumps({"images": listed, "annotations": annotations}))
    names, references = file_names(read_columns(path)), read_references(path)
    assert names == {"7": "COCO_val2014_000000000007.jpg", "8": "COCO_val2014_000000000008.jpg"}
    notes: list[str] = []
    predictions = {"val2014/COCO_val2014_000000000007.jpg": "x", "8": "y"}
    assert align(predictions, references, names=names, notes=notes) == {"7": "x", "8": "y"}
    assert notes == ["1 of 2 predictions are matched by the references' file_name"]
    twins = {"1": "ct/a.png", "2": "mr/a.png"}
    both = {"1": ["p"], "2": ["q"]}
    assert align({"mr/a.png": "x", "ct/a.png": "y"}, both, names=twins) == {"1": "y", "2": "x"}
    with pytest.raises(UsageError, match="fits 2 references"):
        align({"a.png": "x"}, both, names=twins)


def test_the_plain_text_example_of_another_tool(shared_data: Path) -> None:
    folder = shared_data / "caption-eval" / "nlgeval_example"
    references = read_references(folder / "ref1.txt", folder / "ref2.txt")
    assert read_predictions(folder / "hyp.txt").keys() == references.keys() == {"1", "2"}
    assert all(len(captions) == 2 for captions in references.values())


def test_other_columns_are_kept_for_groups(write: Write) -> None:
    path = write("r.csv", "id,caption,Modality,patient\n1,a,CT,p\n1,b,MR,q\n2,c,,p\n")
    columns = read_columns(path)
    assert columns["1"]["modality"] == "CT"
    assert (columns["2"]["modality"], columns["2"]["patient"]) == ("", "p")
