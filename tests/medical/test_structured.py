"""Reports for a department: what they say, what they must not, and that DCMTK takes them."""

import datetime
import io
import json
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import quiet_pydicom
from medical.structured import NOTICE, basic_text_sr, fhir_report

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
MODEL = {"model": "grr-coca tiny", "model_hash": "0123456789ab", "version": "0.1.0"}
IMAGE = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
    "SOPInstanceUID": generate_uid(),
    "StudyInstanceUID": generate_uid(),
}


def written(report) -> bytes:
    stream = io.BytesIO()
    report.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_what_a_structured_report_says(make_dicom):
    image = make_dicom(GREY, **IMAGE, PatientName="Müller^Eva", PatientID="7", SpecificCharacterSet="ISO_IR 100")
    report = dcmread(io.BytesIO(written(basic_text_sr(image, "Röntgen: a left mass.", **MODEL))))
    assert (report.CompletionFlag, report.VerificationFlag, report.Modality) == ("PARTIAL", "UNVERIFIED", "SR")
    assert (str(report.PatientName), report.PatientID) == ("Müller^Eva", "7")
    assert report.StudyInstanceUID == IMAGE["StudyInstanceUID"]
    assert report.SOPInstanceUID != IMAGE["SOPInstanceUID"]
    texts = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert texts[1:] == [NOTICE, "Röntgen: a left mass."]
    assert "grr-coca tiny" in texts[0]
    (reference,) = report.ContentSequence[-1].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == IMAGE["SOPInstanceUID"]


def test_what_has_no_report(make_dicom):
    with pytest.raises(UnreadableImage, match="not DICOM"):
        basic_text_sr(b"\x89PNG" + bytes(200), "x", **MODEL)
    with pytest.raises(UnreadableImage, match="missing element: StudyInstanceUID"):
        basic_text_sr(make_dicom(GREY, SOPInstanceUID=generate_uid()), "x", **MODEL)


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "US1_UNCR.dcm", "RG1_UNCR.dcm", "examples_palette.dcm"]
)
def test_dcmtk_takes_it(tmp_path: Path, name: str) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (dcmtk) is not here")
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} is not here")
    (tmp_path / "sr.dcm").write_bytes(written(basic_text_sr(Path(path), "Röntgen: a µ mass; " * 30, **MODEL)))
    done = subprocess.run(["dsrdump", "-v", str(tmp_path / "sr.dcm")], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    # Its checker of values does not know UTF-8; that is all it says
    assert {line for line in done.stderr.splitlines() if line[:2] in ("W:", "E:")} <= {
        "W: The VR checker does not support this Specific Character Set: ISO_IR 192"
    }
    assert "UNVERIFIED" in done.stdout


def test_a_fhir_report_is_preliminary_and_nobodys():
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    report = json.loads(json.dumps(fhir_report("A left mass.", **MODEL, issued=when)))
    assert report["resourceType"] == "DiagnosticReport"
    assert report["status"] == "preliminary"
    assert report["code"]["coding"][0] == {
        "system": "http://loinc.org",
        "code": "18748-4",
        "display": "Diagnostic imaging study",
    }
    assert report["issued"] == "2026-01-02T03:04:05+00:00"
    assert report["conclusion"].startswith("A left mass.")
    assert NOTICE in report["conclusion"]
    assert "subject" not in report
    contained = {resource["id"]: resource for resource in report["contained"]}
    references = [report["result"][0]["reference"], contained["caption"]["device"]["reference"]]
    assert {reference.removeprefix("#") for reference in references} == contained.keys()  # each is referred to
    assert contained["caption"]["status"] == "preliminary"
    assert contained["caption"]["valueString"] == "A left mass."
    assert contained["model"]["deviceName"][0]["type"] == "model-name"


def test_an_empty_caption_is_said_to_be_absent():
    observation = fhir_report("", **MODEL)["contained"][1]
    assert "valueString" not in observation
    assert observation["dataAbsentReason"]["text"]


BROKEN = {
    "PatientBirthDate": "ZZMARK1",
    "PatientSex": "zzmark2",
    "PatientID": "ZZMARK3" * 12,
    "StudyDate": "ZZMARK4",
    "AccessionNumber": "ZZMARK5" * 5,
    "StudyInstanceUID": "1.2.ZZMARK6",
}
"""Values against the rules of their VR, which pydicom quotes in its warnings."""


def test_broken_values_are_not_quoted_and_do_not_stop_a_report(make_dicom, capfd, caplog):
    with quiet_pydicom():
        image = make_dicom(GREY, **IMAGE | BROKEN)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        content = written(basic_text_sr(image, "x", **MODEL))
    captured = capfd.readouterr()
    texts = [caplog.text, captured.out, captured.err, *(str(warning.message) for warning in said)]
    assert not any("zzmark" in text.lower() for text in texts)
    with quiet_pydicom():
        report = dcmread(io.BytesIO(content))
        kept = {keyword for keyword in BROKEN if report[keyword].value == BROKEN[keyword]}
        assert kept == {"PatientID", "AccessionNumber", "StudyInstanceUID"}  # a report is filed by them
        assert not any((report.PatientBirthDate, report.PatientSex, report.StudyDate))


def test_the_frame_that_was_captioned_is_the_one_referred_to(make_dicom):
    def frame_number(frames: int, frame: int | None) -> int | None:
        image = make_dicom(np.repeat(GREY[None], frames, 0), **IMAGE, NumberOfFrames=frames)
        (reference,) = basic_text_sr(image, "x", **MODEL, frame=frame).ContentSequence[-1].ReferencedSOPSequence
        return reference.get("ReferencedFrameNumber")

    assert [frame_number(5, 0), frame_number(5, 4)] == [1, 5]
    assert [frame_number(5, None), frame_number(1, 0)] == [None, None]


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    "elements",
    [
        {"PatientName": None},  # no element of a patient at all
        {"PatientName": "Müller^Eva", "PatientBirthDate": "no date", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientName": "Yamada^Tarou=山田^太郎", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
        {"NumberOfFrames": 2},
    ],
)
def test_dcmtk_takes_reports_of_odd_images(tmp_path: Path, make_dicom, elements: dict[str, object]) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (dcmtk) is not here")
    with quiet_pydicom():
        image = make_dicom(np.repeat(GREY[None], 2, 0), **IMAGE, **elements)
    report = written(basic_text_sr(image, "x", **MODEL, frame=1))
    if name := elements.get("PatientName"):
        assert str(dcmread(io.BytesIO(report)).PatientName) == name
    (tmp_path / "sr.dcm").write_bytes(report)
    done = subprocess.run(["dsrdump", "-v", str(tmp_path / "sr.dcm")], capture_output=True, check=False)
    assert done.returncode == 0
    said = [line for line in done.stderr.decode().splitlines() if line[:2] in ("W:", "E:")]
    assert all("does not support this Specific Character Set" in line for line in said)


def test_a_fhir_instant_has_its_zone_and_a_blank_caption_is_none():
    report = fhir_report("  ", **MODEL, issued=datetime.datetime(2026, 1, 2, 3, 4, 5))
    assert datetime.datetime.fromisoformat(report["issued"]).tzinfo is not None
    assert "valueString" not in report["contained"][1]
    assert report["conclusion"] == f"[{NOTICE}]"


def test_a_deflated_bomb_is_not_inflated_for_a_report(make_dicom):
    bomb = make_dicom(GREY, **IMAGE, syntax=DeflatedExplicitVRLittleEndian, EncapsulatedDocument=bytes(2**26))
    assert len(bomb) < 2**17
    with pytest.raises(UnreadableImage, match="too large"):
        basic_text_sr(bomb, "x", **MODEL)
