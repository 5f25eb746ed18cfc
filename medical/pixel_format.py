"""How a file lays out its pixels: what the header leaves out is inferred where the standard lets one, and checked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import PIXEL_KEYWORDS, sop_class_name
from medical.elements import code, integer, value

if TYPE_CHECKING:
    from pydicom import FileDataset

MAX_FRAME_PIXELS = 2**26
COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
GREYS = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE = "PALETTE COLOR"

CODECS = {
    **{f"1.2.840.10008.1.2.4.{last}": "JPEG" for last in (50, 51, 53, 55, 57, 70, 80, 81)},
    **{f"1.2.840.10008.1.2.4.{last}": "JPEG 2000" for last in (90, 91, 201, 202, 203)},
    "1.2.840.10008.1.2.5": "RLE",
}
"""Compressed transfer syntaxes that some codec reads, by family; JPEG-LS counts as JPEG, HTJ2K as JPEG 2000."""


@dataclass(frozen=True)
class PixelFormat:
    """How one file lays out its pixels, complete and checked (PS3.3 C.7.6.3).

    Attributes:
        keyword: The element that holds the pixels.
        transfer_syntax: UID of the transfer syntax.
        rows: Height in pixels.
        columns: Width in pixels.
        samples: 1 or 3.
        photometric: One of `GREYS`, `COLOURS` or `PALETTE`.
        planar: PlanarConfiguration, 0 or 1.
        bits_allocated: 1, 8, 16, 32 or 64.
        bits_stored: 1 to `bits_allocated`.
        high_bit: Position of the highest stored bit.
        signed: Whether stored values are two's complement.
        frames: NumberOfFrames, at least 1.
        warnings: What had to be inferred or passed over, fixed phrases.
    """

    keyword: str
    transfer_syntax: str
    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    frames: int
    warnings: tuple[str, ...]

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame; 4:2:2 chroma is shared by two pixels."""
        bits = self.rows * self.columns * self.samples * self.bits_allocated
        return bits // 3 * 2 if self.photometric == "YBR_FULL_422" else bits

    @property
    def codec(self) -> str:
        """Family of the compression, a value of `CODECS`; empty for native pixels and what nothing decodes."""
        return CODECS.get(self.transfer_syntax, "")


def pixel_format(dataset: "FileDataset") -> PixelFormat:
    """Read, complete and check the pixel description.

    Raises:
        UnreadableImage: ``"missing element"``, ``"not supported"`` or ``"too large"``.
    """
    warnings: list[str] = []
    keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in dataset)
    needed = {name: integer(dataset, name) or 0 for name in ("Rows", "Columns", "BitsAllocated")}
    if keyword != "PixelData":
        needed["BitsAllocated"] = 32 if keyword == "FloatPixelData" else 64
    for name, found in needed.items():
        if found <= 0:
            raise UnreadableImage("missing element", f"{name} in {sop_class_name(dataset)}")
    rows, columns, allocated = needed.values()
    if rows * columns > MAX_FRAME_PIXELS:
        raise UnreadableImage("too large", f"{rows} x {columns} pixels, at most {MAX_FRAME_PIXELS:,} are read")
    if allocated not in (1, 8, 16, 32, 64):
        raise UnreadableImage("not supported", f"BitsAllocated of {allocated}")

    samples, photometric = _colour_model(dataset, warnings)
    stored = integer(dataset, "BitsStored") or 0
    if not 1 <= stored <= allocated:
        warnings.append("BitsStored missing or invalid: taken as BitsAllocated")
        stored = allocated
    high_bit = integer(dataset, "HighBit")
    if high_bit is None or not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    return PixelFormat(
        keyword=keyword,
        transfer_syntax=_transfer_syntax(dataset, warnings),
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        planar=int(integer(dataset, "PlanarConfiguration") == 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=integer(dataset, "PixelRepresentation") == 1,
        frames=max(integer(dataset, "NumberOfFrames") or 1, 1),
        warnings=tuple(warnings),
    )


def _colour_model(dataset: "FileDataset", warnings: list[str]) -> tuple[int, str]:
    """SamplesPerPixel and PhotometricInterpretation, each inferred from the other where it is missing or odd."""
    photometric, samples = code(dataset, "PhotometricInterpretation"), integer(dataset, "SamplesPerPixel")
    if photometric.startswith(("YBR_PARTIAL", "HSV", "ARGB", "CMYK")) or samples not in (None, 1, 3):
        raise UnreadableImage("not supported", "a retired colour space or SamplesPerPixel other than 1 and 3")
    if samples is None:
        warnings.append("SamplesPerPixel missing: inferred")
        samples = 3 if photometric in COLOURS else 1
    if photometric not in (COLOURS if samples == 3 else GREYS | {PALETTE}):
        warnings.append("PhotometricInterpretation missing or at odds with SamplesPerPixel: inferred")
        photometric = "RGB" if samples == 3 else "MONOCHROME2"
    return samples, photometric


def _transfer_syntax(dataset: "FileDataset", warnings: list[str]) -> str:
    """UID of the transfer syntax; without one, the native syntax in which the data set was found to be written."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if uid := value(dataset.file_meta, "TransferSyntaxUID"):
        return str(uid)
    warnings.append("no transfer syntax in the file: taken from how its elements are written")
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
