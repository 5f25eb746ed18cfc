"""A DICOM file as a data set of the elements that make a picture, and the refusals of what is no picture.

The parser is told which elements to keep (`ELEMENTS`): names, dates, UIDs, descriptions and private elements are
never held at all, so that nothing further on can show them.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from grrcoca_cli.errors import UnreadableImage
from medical.elements import code, value

if TYPE_CHECKING:
    from pydicom import FileDataset

HEAD_BYTES = 2048
MAX_INFLATED_BYTES = 2**28
INFLATION = (2**24, 100)
"""A deflated data set may grow to so many bytes, and above that to so many times its size in the file."""
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

ELEMENTS = [
    *("SOPClassUID", "Modality"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *(f"{kind}FloatPixelPadding{part}" for kind in ("", "Double") for part in ("Value", "RangeLimit")),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "PresentationLUTShape"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
    *(f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", *PIXEL_KEYWORDS),
]

HEADER_ELEMENTS = [
    *("SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames"),
    *("SeriesInstanceUID", "InstanceNumber", "ImageOrientationPatient", "ImagePositionPatient"),
]

_MODALITY_TERMS = """
    ANN AR AS ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DD DG DM DMS DOC DX ECG EEG EMG EOG EPS ES FA FID FS GM HC HD
    IO IOL IVOCT IVUS KER KO LEN LP LS MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR
    PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST
    STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC
"""
MODALITIES = frozenset(_MODALITY_TERMS.split())
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1): a value outside them is free text and is not shown."""

_FIRST_VRS = frozenset({b"UL", b"OB", b"UI", b"SH", b"CS", b"DA", b"TM", b"LO", b"SQ", b"DT", b"AE", b"ST", b"PN"})

NOT_PICTURES = frozenset({"RT Dose Storage", "Segmentation Storage", "Label Map Segmentation Storage"})
"""SOP classes that carry pixel data and are still no picture to look at."""


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes, `HEAD_BYTES` of them, are DICOM: by the mark at 128, else by the first elements.

    Old files begin with the data set itself. Such a one is believed if an element of group 0008 (0002 for a bare
    file meta) stands first, in explicit VR of either byte order, or in implicit VR with its length leading to another
    element of that group.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    for order in "<>":
        group, element = struct.unpack(order + "HH", head[:4])
        if group not in (0x0002, 0x0008):
            continue
        if head[4:6] in _FIRST_VRS:
            return True
        after = 8 + struct.unpack(order + "I", head[4:8])[0]
        if order == "<" and after + 4 <= len(head):
            next_group, next_element = struct.unpack_from("<HH", head, after)
            if group == next_group == 0x0008 and next_element > element:
                return True
    return False


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom and its codecs from warning, logging or validating: what they say quotes values of the file.

    Restores every setting. Not safe between threads, like `warnings.catch_warnings`; processes are.
    """
    from pydicom import config

    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def parse(source: Path | bytes) -> "FileDataset":
    """The data set of a DICOM file, `ELEMENTS` alone. Call within `quiet_pydicom`.

    Raises:
        UnreadableImage: The deflated data set inflates past `MAX_INFLATED_BYTES` or `INFLATION`, or the file ends
            before its pixel data does.
    """
    from pydicom import dcmread

    with io.BytesIO(source) if isinstance(source, bytes) else _SizedFile(source) as file:
        _refuse_deflate_bomb(file)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            dataset = dcmread(file, force=True, specific_tags=list(ELEMENTS))
    has_pixels = any(keyword in dataset for keyword in PIXEL_KEYWORDS)
    if not has_pixels and any("End of file" in str(warning.message) for warning in said):
        raise UnreadableImage("truncated", "the file ends within an element")
    return dataset


def parse_header(source: Path | bytes, elements: Sequence[str] = tuple(HEADER_ELEMENTS)) -> "FileDataset":
    """Some elements of a DICOM file, by default those that place it among others. Call within `quiet_pydicom`.

    Args:
        source: A file, or the bytes of one; its pixels stay unread.
        elements: Keywords of what is kept.

    Raises:
        UnreadableImage: As `parse`.
    """
    from pydicom import dcmread

    with io.BytesIO(source) if isinstance(source, bytes) else _SizedFile(source) as file:
        _refuse_deflate_bomb(file)
        return dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(elements))


class _SizedFile(io.BufferedReader):
    """A file that is never asked for more than it holds: Python would allocate the 4 GB that an element promises."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(str(path)))  # pydicom adds the name to a message
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(self._size - self.tell(), 0))
        return super().read(size)


def refuse_non_pictures(dataset: "FileDataset") -> None:
    """Refuse reports, presentation states, RT objects, segmentations, waveforms and the like by their SOP class.

    Raises:
        UnreadableImage: ``"not an image"``, or ``"no pixel data"`` of an image that lost its own, with the name of
            the SOP class.
    """
    name = sop_class_name(dataset)
    if name in NOT_PICTURES:
        raise UnreadableImage("not an image", name)
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        raise UnreadableImage("no pixel data" if "Image" in name else "not an image", name)


def sop_class_name(dataset: "FileDataset") -> str:
    """The registered name of the object's SOP class; a fixed phrase where there is none."""
    uid = value(dataset, "SOPClassUID") or value(dataset.file_meta, "MediaStorageSOPClassUID")
    return registered_name(uid) or "a DICOM object of unknown SOP class"


def registered_name(uid: object) -> str:
    """The name the standard gives a UID; empty for a private or malformed one, which may identify somebody."""
    from pydicom.uid import UID

    name = UID(str(uid)).name
    return "" if name == str(uid) else name


def modality(dataset: "FileDataset") -> str:
    """Modality, where it is one of the standard's defined terms; else empty."""
    found = code(dataset, "Modality")
    return found if found in MODALITIES else ""


def _refuse_deflate_bomb(file: BinaryIO) -> None:
    """Inflate a deflated data set in small steps and count; pydicom would inflate all at once. Rewinds the file."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    head = file.read(HEAD_BYTES)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return
    floor, times = INFLATION
    limit = min(MAX_INFLATED_BYTES, max(floor, times * size))
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    file.seek(_end_of_meta(head))
    while chunk := inflater.unconsumed_tail or file.read(2**16):
        inflated += len(inflater.decompress(chunk, 2**20))
        if inflated > limit:
            raise UnreadableImage("too large", f"the deflated data set holds more than {limit:,} bytes")
    if not inflater.eof:
        raise UnreadableImage("truncated", "the deflated data set has no end")
    file.seek(0)


def _end_of_meta(head: bytes) -> int:
    """Offset of the first element after group 0002, which is always in explicit VR, little endian."""
    at = 132 if head[128:132] == b"DICM" else 0
    while at + 12 <= len(head) and head[at : at + 2] == b"\x02\x00":
        wide = head[at + 4 : at + 6] in (b"OB", b"UN", b"SQ", b"OW", b"UT")
        length = struct.unpack_from("<I", head, at + 8)[0] if wide else struct.unpack_from("<H", head, at + 6)[0]
        at += (12 if wide else 8) + length
    return at
