"""Reports for a department: what they say, what they must not, and that DCMTK takes them."""

import datetime
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from grrcoca_cli.errors import UnreadableImage
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
