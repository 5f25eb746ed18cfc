"""One frame of pixel data, decoded by pydicom's plug-ins: stored values as a numpy array.

What the header leaves out is inferred where the standard lets one; what is left is checked before anything is
allocated.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import PIXEL_KEYWORDS, registered_name, sop_class_name
from medical.elements import MALFORMED, code, integer, value

if TYPE_CHECKING:
    from pydicom import FileDataset
    from pydicom.pixels.decoders.base import Decoder

MAX_FRAME_PIXELS = 2**26
COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
GREYS = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE = "PALETTE COLOR"

_PLUGINS = ("pylibjpeg", "pillow", "gdcm", "pydicom")
"""Codecs in the order they are asked; GDCM last of the three, for it writes to stderr on bad JPEG 2000."""

_PACKAGES = {
    "JPEG Baseline": "pillow",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "python-gdcm",
}


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


def decode_frame(dataset: "FileDataset", fmt: PixelFormat, frame: int) -> tuple[NDArray[Any], PixelFormat]:
    """Decode one frame; call within `quiet_pydicom`.

    Args:
        dataset: The file's data set.
        fmt: Its pixel description.
        frame: Index from 0, below ``fmt.frames``.

    Returns:
        Stored values, (H, W) or (H, W, 3), YBR already turned into RGB; and the description with what decoding
        taught (photometric interpretation, warnings).

    Raises:
        UnreadableImage: ``"codec missing"``, ``"not supported"``, ``"truncated"`` or ``"damaged"``.
    """
    decoder, data = find_decoder(fmt.transfer_syntax), value(dataset, fmt.keyword)
    if not isinstance(data, bytes):
        raise UnreadableImage("truncated", f"{fmt.keyword} is empty")
    if not decoder.is_encapsulated:
        fmt = _check_length(fmt, len(data))
    # HighBit above BitsStored - 1: let the decoder mask and sign up to it, then drop the bits below
    below = fmt.high_bit + 1 - fmt.bits_stored if not decoder.is_encapsulated else 0
    options: dict[str, Any] = {
        "rows": fmt.rows,
        "columns": fmt.columns,
        "number_of_frames": fmt.frames,
        "samples_per_pixel": fmt.samples,
        "photometric_interpretation": fmt.photometric,
        "planar_configuration": fmt.planar,
        "bits_allocated": fmt.bits_allocated,
        "bits_stored": fmt.bits_stored + below,
        "pixel_representation": int(fmt.signed),
        "pixel_keyword": fmt.keyword,
        "pixel_vr": dataset[fmt.keyword].VR,
        "allow_excess_frames": False,
    }
    offsets, lengths = value(dataset, "ExtendedOffsetTable"), value(dataset, "ExtendedOffsetTableLengths")
    if isinstance(offsets, bytes) and isinstance(lengths, bytes):
        options["extended_offsets"] = (offsets, lengths)
    plugin = next((name for name in _PLUGINS if name in decoder.available_plugins), "")
    try:
        stored, found = decoder.as_array(data, index=frame, decoding_plugin=plugin, **options)
    except (*MALFORMED, RuntimeError, IndexError, EOFError, OSError) as error:
        if isinstance(error, RecursionError):
            raise
        raise _decoding_failure(fmt, error) from None
    photometric = str(found["photometric_interpretation"])
    if fmt.samples == 3 and photometric != "RGB":
        raise UnreadableImage("not supported", f"PhotometricInterpretation {photometric}")
    return stored >> below if below else stored, replace(fmt, photometric=photometric)


def find_decoder(uid: str) -> "Decoder":
    """pydicom's decoder of a transfer syntax, with a codec behind it.

    Raises:
        UnreadableImage: ``"not supported"`` or ``"codec missing"``, with the transfer syntax by name.
    """
    from pydicom.pixels.decoders.base import get_decoder

    name = registered_name(uid) or "a private transfer syntax"
    try:
        decoder: Decoder = get_decoder(uid)
    except NotImplementedError:
        raise UnreadableImage("not supported", f"transfer syntax {name}") from None
    if not decoder.is_available:
        package = next((line for start, line in _PACKAGES.items() if name.startswith(start)), "pydicom")
        raise UnreadableImage("codec missing", f"{name}: pip install {package}")
    return decoder


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


def _check_length(fmt: PixelFormat, length: int) -> PixelFormat:
    """Compare native pixel data with what the header promises."""
    if fmt.photometric == "YBR_FULL_422" and length * 8 >= fmt.frame_bits // 2 * 3 * fmt.frames:
        warning = "YBR_FULL_422 without subsampling: read as YBR_FULL"
        fmt = replace(fmt, photometric="YBR_FULL", warnings=(*fmt.warnings, warning))
    expected = ceil(fmt.frame_bits * fmt.frames / 8)
    if length < expected:
        frames = f" for {fmt.frames} frames" if fmt.frames > 1 else ""
        raise UnreadableImage("truncated", f"{length:,} bytes of pixel data, {expected:,} expected{frames}")
    if length > expected + expected % 2:
        fmt = replace(fmt, warnings=(*fmt.warnings, "excess pixel data: ignored"))
    return fmt


def _decoding_failure(fmt: PixelFormat, error: Exception) -> UnreadableImage:
    """A refusal that names the transfer syntax; the codecs' own words may quote the file and are dropped."""
    from pydicom.uid import JPEGExtended12Bit

    name = registered_name(fmt.transfer_syntax)
    if fmt.transfer_syntax == JPEGExtended12Bit and fmt.bits_stored > 8:
        return UnreadableImage("not supported", f"{name} with 12-bit samples: no installed codec reads it")
    return UnreadableImage("damaged", f"{name} pixel data cannot be decoded ({type(error).__name__})")
