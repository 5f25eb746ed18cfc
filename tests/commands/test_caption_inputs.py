"""`grrcoca caption` on archives, series, frames and standard input, its other formats, and what it never says."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from grrcoca_cli.cli import app

EVAL = ["--set", "eval.batch_size=4", "--set", "eval.resamples=50"]


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def write_dicom(path: Path, *, frames: int = 1, **elements: object) -> Path:
    dataset, meta = Dataset(), FileMetaDataset()
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (frames, 40, 40), dtype=np.uint8)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, generate_uid(), "CT"
    dataset.StudyInstanceUID = generate_uid()
    dataset.Rows = dataset.Columns = 40
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Five slices of one series in a disorder of names, a scout, a report without pixels."""
    uid, folder = generate_uid(), tmp_path / "series"
    for place, name in zip([4, 0, 3, 1, 2], "abcde", strict=True):
        write_dicom(
            folder / f"{name}.dcm",
            SeriesInstanceUID=uid,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, float(place)],
        )
    write_dicom(folder / "scout.dcm", SeriesInstanceUID=generate_uid(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = dcmread(get_testdata_file("reportsi.dcm", download=False) or pytest.skip("pydicom's files are not here"))
    report.save_as(folder / "report.dcm")
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_a_series_gives_one_slice(tiny_run: Path, series: Path, tmp_path: Path, zipped: bool) -> None:
    words: list[object] = [series, "--series"]
    if zipped:
        with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
            for path in series.iterdir():
                archive.write(path, path.name)
        words = [tmp_path / "series.zip"]
    code, out, err = run("caption", *words, "--checkpoint", tiny_run, "--json")
    (row,) = map(json.loads, out.splitlines())
    assert code == 0
    assert Path(row["file"]).name == "e.dcm"  # at 2 of 0 to 4
    assert (row["slice"], row["slices"]) == (2, 5)
    assert "not captioned: 1 x localizer" in err
    assert "not captioned: 1 x not an image: Basic Text SR Storage" in err

    _, out, _ = run("caption", *words, "--checkpoint", tiny_run, "--json", "--frame", "all")
    assert [Path(json.loads(line)["file"]).stem for line in out.splitlines()] == ["b", "d", "e", "c", "a"]


def test_frames(tiny_run: Path, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "cine.dcm", frames=5)
    for frame, read in (("auto", 2), ("first", 0), ("middle", 2), ("4", 4)):
        code, out, _ = run("caption", path, "--checkpoint", tiny_run, "--json", "--frame", frame)
        assert (code, json.loads(out)["frame_read"], json.loads(out)["frames"]) == (0, read, 5)
    kept = tmp_path / "kept.jsonl"
    words = ["caption", path, "--checkpoint", tiny_run, "--frame", "all", "--format", "jsonl", "--out", kept]
    assert run(*words)[0] == 0
    lines = kept.read_text().splitlines(keepends=True)
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2, 3, 4]
    kept.write_text("".join(lines[:2]))
    run(*words)
    assert [json.loads(line)["frame"] for line in kept.read_text().splitlines()] == [0, 1, 2, 3, 4]
    code, _, err = run("caption", path, "--checkpoint", tiny_run, "--frame", "9")
    assert code == 3
    assert "no such frame: frame 9 of 5" in err
    assert run("caption", path, "--checkpoint", tiny_run, "--frame", "last")[0] == 2


def test_the_window_is_said(tiny_run: Path, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct.dcm", RescaleSlope=1, RescaleIntercept=-100)
    _, out, _ = run("caption", path, "--checkpoint", tiny_run, "--json", "--window", "brain")
    assert "brain" in json.loads(out)["window"]
    code, _, err = run("caption", path, "--checkpoint", tiny_run, "--window", "0/-5")
    assert code == 2
    assert "window" in err


def test_standard_input_and_names(tiny_run: Path, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "surname_first.dcm")
    done = subprocess.run(
        [sys.executable, "-m", "grrcoca_cli", "caption", "-", "--checkpoint", str(tiny_run), "--device", "cpu"],
        input=path.read_bytes(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"-\t")
    cut = tmp_path / "surname_second.dcm"
    cut.write_bytes(path.read_bytes()[:-900])
    for by in ("hash", "index"):
        code, out, err = run("caption", path, cut, "--checkpoint", tiny_run, "--json", "--id", by)
        assert code == 3
        assert "surname" not in out + err.replace(str(tiny_run), "")
        assert json.loads(out.splitlines()[0])["file"] == (
            "0" if by == "index" else json.loads(out.splitlines()[0])["file"]
        )
    assert len(json.loads(run("caption", path, "--checkpoint", tiny_run, "--json", "--id", "hash")[1])["file"]) == 16


def test_reports_for_a_department(tiny_run: Path, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PatientName="ZZMARK^Eva")
    words = ["caption", path, "--checkpoint", tiny_run, "--format", "sr", "--out", tmp_path / "sr"]
    code, _, err = run(*words)
    assert code == 2
    assert "--with-identity" in err
    assert run(*words, "--with-identity")[0] == 0
    (report,) = (tmp_path / "sr").iterdir()
    assert report.name != "a.dcm"
    assert str(dcmread(report).PatientName) == "ZZMARK^Eva"
    code, out, _ = run("caption", path, "--checkpoint", tiny_run, "--format", "fhir")
    assert code == 0
    assert json.loads(out)["status"] == "preliminary"
    assert "ZZMARK" not in out


def test_a_batch_of_good_and_bad_files(tiny_run: Path, tmp_path: Path) -> None:
    good = write_dicom(tmp_path / "good.dcm")
    (tmp_path / "cut.dcm").write_bytes(good.read_bytes()[:-900])
    (tmp_path / "text.dcm").write_text("not a picture")
    (tmp_path / "really_dicom.png").write_bytes(good.read_bytes())
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder.dcm").mkdir()
    names = ["good.dcm", "cut.dcm", "text.dcm", "really_dicom.png", "empty"]
    code, out, err = run("caption", *(tmp_path / name for name in names), "--checkpoint", tiny_run, "--format", "csv")
    rows = {Path(row["file"]).name: row for row in csv.DictReader(io.StringIO(out))}
    assert code == 3
    assert list(rows) == names
    assert {name for name, row in rows.items() if row["error"]} == {"cut.dcm", "text.dcm", "empty"}
    reasons = [line for line in err.splitlines() if str(tmp_path) in line]
    assert len(reasons) == 3
    assert "Traceback" not in err


# Every kind of place where a value may stand: each holds a mark that no output may show.
PLACES = {
    **{"PatientName": "PN", "PatientID": "LO", "PatientAddress": "LO", "OtherPatientNames": "PN"},
    **{"PatientComments": "LT", "AccessionNumber": "SH", "StudyID": "SH", "StudyDescription": "LO"},
    **{"SeriesDescription": "LO", "ProtocolName": "LO", "InstitutionName": "LO", "InstitutionAddress": "ST"},
    **{"StationName": "SH", "ReferringPhysicianName": "PN", "PerformingPhysicianName": "PN", "OperatorsName": "PN"},
    **{"DeviceSerialNumber": "LO", "ImageComments": "LT", "RequestedProcedureDescription": "LO"},
    **{"WindowCenterWidthExplanation": "LO", "LossyImageCompressionMethod": "CS", "BodyPartExamined": "CS"},
    **{"ManufacturerModelName": "LO", "AdmissionID": "LO", "Occupation": "SH", "AdditionalPatientHistory": "LT"},
}


@pytest.fixture
def marked(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with one file of thirty marked values, a copy that is cut and one that is no image; and the marks."""
    marks = [f"ZZMARK{number:02d}" for number in range(len(PLACES) + 6)]
    path = write_dicom(tmp_path / "marked" / "a.dcm", **dict(zip(PLACES, marks, strict=False)))
    rest = iter(marks[len(PLACES) :])
    dataset = dcmread(path)
    block = dataset.private_block(0x0031, next(rest), create=True)
    block.add_new(1, "LO", next(rest))
    dataset.add_new(0x60000022, "LO", next(rest))  # OverlayDescription
    dataset.add_new(0x40080300, "PN", next(rest))
    dataset.file_meta.SourceApplicationEntityTitle = next(rest)
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = next(rest).encode()
    dataset.save_as(path)
    content = path.read_bytes()
    assert len(marks) >= 30
    assert all(mark.encode() in content for mark in marks)
    (path.parent / "b.dcm").write_bytes(content[:-800])
    at = content.index(b"\x28\x00\x10\x00US")  # Rows
    (path.parent / "c.dcm").write_bytes(content[: at + 8] + b"\0\0" + content[at + 10 :])
    odd = content.replace(b"PN\x08\x00ZZMARK00", b"DA\x08\x00ZZMARK00")  # a bad date, of which pydicom would warn
    assert odd != content
    (path.parent / "d.dcm").write_bytes(odd)
    return path.parent, marks


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "fhir"])
@pytest.mark.parametrize("series", [False, True])
def test_no_value_comes_out_of_caption(tiny_run: Path, marked: tuple[Path, list[str]], kind: str, series: bool) -> None:
    folder, marks = marked
    words = [folder, "--checkpoint", tiny_run, "--format", kind, *(["--series"] if series else [])]
    code, out, err = run("caption", *words)
    assert code == 3
    assert "a.dcm" in out
    assert not [mark for mark in marks if mark in out + err]


def test_no_value_comes_out_of_training_and_evaluation(
    tiny_run: Path, marked: tuple[Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, marks = marked
    names = ["a.dcm", "b.dcm", "c.dcm", "d.dcm"]
    for number in range(6):
        names.append(write_dicom(folder / f"e{number}.dcm", PatientName=marks[0]).name)
    (folder / "train_captions.csv").write_text("file,caption\n" + "".join(f"{name},a mass\n" for name in names))
    (folder / "test_captions.csv").write_text(
        "file,caption\n" + "".join(f"{name},a mass {name}\n" for name in names[:6])
    )
    report, rows, run_folder = tmp_path / "r.html", tmp_path / "rows.csv", tmp_path / "run"
    words = ["--data", folder, "--checkpoint", tiny_run, "--device", "cpu"]
    code, out, err = run("eval", *words, "--report", report, "--out", rows, "--json", *EVAL)
    assert code == 3
    settings = ("training.steps=1", "training.batch_size=4", "data.augment=none", f"data.cache={tmp_path / 'cache'}")
    flags = [part for s in (*settings, "data.workers=1", "eval.batch_size=2") for part in ("--set", s)]
    code, trained, said = run("finetune", "--dataset", "folder", *words, "--out", run_folder, *flags)
    assert code == 0, said
    written = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert len(written) > 10
    text = out + err + trained + said + caplog.text + "".join(map(str, written))
    content = b"".join(path.read_bytes() for path in written)
    assert not [mark for mark in marks if mark in text or mark.encode() in content]


def test_a_slice_that_a_volume_lacks_is_a_failure_of_that_volume(tiny_run: Path, series: Path) -> None:
    code, out, err = run("caption", series, "--series", "--checkpoint", tiny_run, "--frame", "9", "--json")
    assert code == 3
    assert "no such slice: slice 9 of 5" in err
    write_dicom(series / "other.dcm", frames=10)
    code, out, _ = run("caption", series, "--series", "--checkpoint", tiny_run, "--frame", "9", "--json")
    assert code == 3
    assert [Path(row["file"]).name for row in map(json.loads, out.splitlines()) if "caption" in row] == ["other.dcm"]


def test_names_with_control_characters_stay_on_their_line(tiny_run: Path, tmp_path: Path) -> None:
    good = write_dicom(tmp_path / "many" / "new\nline\tand \x1b[31mred.dcm")
    (good.parent / "cut\n.dcm").write_bytes(good.read_bytes()[:-900])
    out = tmp_path / "out.tsv"
    for _ in range(2):
        code, _, err = run("caption", good.parent, "--checkpoint", tiny_run, "--out", out)
    assert code == 3
    (line,) = out.read_text().splitlines()
    assert "new\\nline\\tand \\x1b[31mred.dcm" in line
    assert "cut\\n.dcm: truncated" in err


def test_what_gets_no_structured_report_failed(tiny_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    words = ["caption", tmp_path / "a.png", "--checkpoint", tiny_run, "--format", "sr", "--out", tmp_path / "sr"]
    code, _, err = run(*words, "--with-identity")
    assert code == 3
    assert "a.png: not DICOM" in err


def test_neither_monai_nor_torchvision_is_imported(tiny_run: Path, phantom_studies: Path) -> None:
    """They take seconds, and evaluation needs none of them."""
    scan = sorted((phantom_studies / "test").glob("*.dcm"))[0]
    commands = [
        ["caption", str(scan), "--checkpoint", str(tiny_run)],
        ["eval", "--checkpoint", str(tiny_run), "--data", str(phantom_studies), *EVAL],
    ]
    code = (
        "import json, sys; from typer.testing import CliRunner; from grrcoca_cli.cli import app\n"
        "results = [CliRunner().invoke(app, words).exit_code for words in json.loads(sys.argv[1])]\n"
        "print(results, sorted({'monai', 'torchvision', 'pycocoevalcap'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] []", done.stdout + done.stderr


def test_going_on_is_for_the_same_settings_alone(tiny_run: Path, tmp_path: Path) -> None:
    path, out = write_dicom(tmp_path / "a.dcm", frames=4), tmp_path / "out.jsonl"
    words = ["caption", path, "--checkpoint", tiny_run, "--json", "--out", out]
    assert run(*words)[0] == 0
    before = out.read_bytes()
    for changed, named in (
        (["--frame", "3"], "frame"),
        (["--window", "lung"], "window"),
        (["--beam", "2"], "generation"),
    ):
        code, _, err = run(*words, *changed)
        assert (code, f"another {named}" in err) == (2, True), err
    assert out.read_bytes() == before
    words = ["caption", path, "--checkpoint", tiny_run, "--json", "--id", "index", "--out", tmp_path / "by_index.jsonl"]
    assert run(*words)[0] == 0
    assert run(*words, write_dicom(tmp_path / "b.dcm"))[0] == 2


@pytest.mark.parametrize("content", ['{"1": ["refs"]}', '{"file": "a", "caption": "mine"}\n', "mine\n", "x"])
def test_a_file_of_somebody_else_is_never_touched(tiny_run: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "references.json"
    out.write_text(content)
    for kind in ("jsonl", "csv", "text", "fhir"):
        code, _, err = run(
            "caption", write_dicom(tmp_path / "a.dcm"), "--checkpoint", tiny_run, "--format", kind, "--out", out
        )
        assert code == 2
        assert "choose another --out" in err
        assert out.read_text() == content


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_failures_are_tried_again(tiny_run: Path, tmp_path: Path, kind: str) -> None:
    good, bad, out = write_dicom(tmp_path / "a.dcm"), tmp_path / "b.dcm", tmp_path / "out"
    bad.write_bytes(good.read_bytes()[:-900])
    words = ["caption", good, bad, "--checkpoint", tiny_run, "--format", kind, "--out", out]
    assert run(*words)[0] == 3
    assert run(*words)[0] == 3
    assert out.read_text().count("truncated") == 1
    bad.write_bytes(good.read_bytes())
    assert run(*words)[0] == 0
    assert "truncated" not in out.read_text()
    assert out.read_text().count("b.dcm") == 1


def test_hostile_inputs_are_one_line_each(tiny_run: Path, tmp_path: Path) -> None:
    good = write_dicom(tmp_path / "in" / "good.dcm")
    (tmp_path / "junk.zip").write_bytes(b"PK\x03\x04junk")
    many = dcmread(good)
    many.NumberOfFrames = 40_000_000
    many.save_as(tmp_path / "many.dcm")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / os.fsdecode(b"latin\xe9.dcm")).write_bytes(good.read_bytes())
    with zipfile.ZipFile(tmp_path / "in" / "study.zip", "w") as archive:
        archive.write(good, "a.dcm")
    words = [tmp_path / "junk.zip", tmp_path / "many.dcm", tmp_path / "in"]
    for kind in ("csv", "jsonl", "text"):
        out = tmp_path / f"out.{kind}"
        flags = ["--frame", "all", "--format", kind, "--out", out, "--id", "hash" if kind == "csv" else "path"]
        code, _, err = run("caption", *words, "--checkpoint", tiny_run, *flags)
        assert code == 3, err
        assert "begins as a zip archive and is none" in err
        assert kind == "csv" or "many.dcm#0: truncated" in err
        assert "1 x zip archive in a folder: name it" in err
        assert kind == "csv" or "xe9.dcm" in out.read_text(encoding="utf-8")


def test_nothing_to_caption_is_said(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("caption", tmp_path / "empty", "--checkpoint", tiny_run)
    assert code == 3
    assert "nothing to caption" in err
    for wrong in ("", str(tmp_path / ("a" * 5000))):
        assert run("caption", wrong, "--checkpoint", tiny_run)[0] == 2
    assert run("caption", tmp_path / "empty", "--checkpoint", tiny_run, "--beam", "0")[0] == 2
    assert run("caption", tmp_path / "empty", "--checkpoint", tiny_run, "--json", "--format", "csv")[0] == 2
