"""Writes phantoms as a set of DICOM files with captions, and as webdataset shards in img2dataset's layout.

The bytes are a function of the arguments: no clock, no random identifier, no user's name goes in.
"""

import csv
import hashlib
import io
import json
import tarfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medical.phantoms import LESION_ATTRIBUTES, Study, Style, draw

COLUMNS = ("ID", "Caption", "modality", "body_part", "lesion", *LESION_ATTRIBUTES)

COMPUTED_RADIOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.1")
DIGITAL_RADIOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.1.1")
CT_IMAGE = UID("1.2.840.10008.5.1.4.1.1.2")
MR_IMAGE = UID("1.2.840.10008.5.1.4.1.1.4")

README = """\
Synthetic phantoms. No picture in this folder comes from a patient: each was drawn by a program, and its caption says
what was drawn. Do not use them for diagnosis, and do not mix them with clinical archives.

<split>/<name>.dcm        DICOM, explicit VR little endian, 12 bits stored; Quality Control Subject is YES
<split>_captions.csv      ID (the file within this folder, without .dcm), Caption, and the stated facts a column each

Left and right are the patient's; pictures are in the radiological convention (the patient's left on the right).
"""


def write_dicom_set(
    folder: Path,
    *,
    splits: Mapping[str, int],
    seed: int,
    style: Style = "report",
    first: int = 0,
    pixels: int = 128,
) -> Path:
    """Write ``{split}/phantom_00000.dcm`` ... and ``{split}_captions.csv`` for each split, and a README.txt.

    Args:
        folder: Made where it does not exist; files of the same name are replaced.
        splits: Count of studies by name of split. Numbers run on from one split to the next, so no study is in two.
        seed: Names the set.
        style: Of the captions.
        first: Number of the first study; sets of one seed share no study where their numbers do not overlap.
        pixels: Height and width.

    Returns:
        ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(README, encoding="utf-8")
    for split, count in splits.items():
        (folder / split).mkdir(exist_ok=True)
        with (folder / f"{split}_captions.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            rows.writeheader()
            for index in range(first, first + count):
                study = draw(seed, index, pixels=pixels)
                name = f"{split}/phantom_{index:05d}"
                to_dicom(study, seed, index).save_as(folder / f"{name}.dcm", enforce_file_format=True)
                rows.writerow({"ID": name, "Caption": study.phantom.caption(style)} | study.phantom.attributes())
        first += count
    return folder


def write_shards(
    folder: Path,
    *,
    count: int,
    seed: int,
    style: Style = "plain",
    shard_size: int = 1000,
    first: int = 0,
    pixels: int = 128,
) -> list[Path]:
    """Write ``00000.tar`` ...: for each study a PNG through its window, its caption and its facts as JSON.

    Args:
        folder: Made where it does not exist; shards of the same name are replaced.
        count: Studies in all.
        seed: Names the set.
        style: Of the captions.
        shard_size: Studies a shard, 1 to 10,000 (a key is the shard's number and four digits).
        first: Number of the first study, as in `write_dicom_set`.
        pixels: Height and width.

    Returns:
        The shards in order.

    Raises:
        ValueError: ``shard_size`` is out of its range.
    """
    if not 1 <= shard_size <= 10_000:
        raise ValueError(f"a shard holds 1 to 10000 studies, not {shard_size}")
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, count, shard_size)):
        shards.append(folder / f"{number:05d}.tar")
        with tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, index in enumerate(range(start, min(start + shard_size, count))):
                study, key = draw(seed, first + index, pixels=pixels), f"{number:05d}{place:04d}"
                for suffix, content in _members(study, key, style).items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")  # owner, mode and time stay at their fixed defaults
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return shards


def _members(study: Study, key: str, style: Style) -> dict[str, bytes]:
    """What a shard holds of one study, by file extension."""
    png, caption = io.BytesIO(), study.phantom.caption(style)
    Image.fromarray(study.display()).save(png, "PNG", compress_level=1)
    height, width = study.stored.shape
    about = {"caption": caption, "key": key, "status": "success", "width": width, "height": height, "synthetic": True}
    about |= study.phantom.attributes() | {"sha256": hashlib.sha256(png.getvalue()).hexdigest()}
    return {"png": png.getvalue(), "txt": caption.encode(), "json": json.dumps(about, indent=4).encode()}


def to_dicom(study: Study, seed: int, index: int) -> Dataset:
    """The study as a DICOM file, with identifiers that depend on ``seed``, ``index`` and the picture's size alone."""
    shown, (rows, columns) = study.acquisition, study.stored.shape
    modality = study.phantom.protocol.modality
    unique = f"{seed}/{index}/{rows}"
    ds = Dataset()
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'phantom/{level}/{unique}').int}")
        for level in ("instance", "study", "series", "frame")
    )
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.PatientBirthDate = ds.PatientSex = ds.Laterality = ""
    ds.PatientName, ds.PatientID = "PHANTOM^SYNTHETIC", f"PHANTOM-{seed}-{index:05d}"
    ds.QualityControlSubject, ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "YES", "Drawn, no patient"
    ds.Manufacturer, ds.SeriesDescription = "grrcoca", "Synthetic phantom"
    ds.ImageComments = "Synthetic phantom, drawn by a program; not a patient, not for diagnosis"
    ds.BurnedInAnnotation, ds.BodyPartExamined = "NO", study.phantom.protocol.body_part.upper()
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, shown.photometric, 0
    ds.Rows, ds.Columns, ds.PixelSpacing = rows, columns, [shown.pixel_spacing] * 2
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.WindowCenter, ds.WindowWidth = shown.window
    if modality == "radiograph":
        _describe_radiograph(ds, shown.photometric, digital=index % 2 == 0)
    else:
        _describe_slice(ds, modality, shown.intercept)
    ds.PixelData = study.stored.astype("<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationVersionName = "GRRCOCA_PHANTOM"
    return ds


def _describe_radiograph(ds: Dataset, photometric: str, *, digital: bool) -> None:
    """Fill in what computed and digital radiography ask for; rows run to the patient's left, columns to the feet."""
    ds.PatientOrientation, ds.ViewPosition, ds.ImagerPixelSpacing = ["L", "F"], "PA", ds.PixelSpacing
    ds.SOPClassUID, ds.Modality = COMPUTED_RADIOGRAPHY, "CR"
    del ds.FrameOfReferenceUID
    if not digital:
        return
    ds.SOPClassUID, ds.Modality = DIGITAL_RADIOGRAPHY, "DX"
    del ds.Laterality
    ds.ImageLaterality, ds.PresentationIntentType = "U", "FOR PRESENTATION"
    ds.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1 if photometric == "MONOCHROME1" else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.LossyImageCompression = 0, 1, "US", "00"


def _describe_slice(ds: Dataset, modality: str, intercept: int) -> None:
    """Fill in what CT and MR slices ask for: x grows to the patient's left, y to the back."""
    ds.SOPClassUID, ds.Modality = (CT_IMAGE, "CT") if modality == "CT" else (MR_IMAGE, "MR")
    ds.ImageType = [*ds.ImageType, "AXIAL" if modality == "CT" else "OTHER"]
    half = ds.PixelSpacing[0] * (ds.Rows - 1) / 2
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-half, -half, 0]
    ds.SliceThickness, ds.PositionReferenceIndicator = 5, ""
    if modality == "CT":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.KVP = intercept, 1, "HU", 120
        return
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = (500, 10, 1) if modality == "T1 MR" else (4000, 100, 1)
    ds.ProtocolName = f"{modality[:2]} AXIAL"
