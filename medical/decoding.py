"""One frame of pixel data, decoded by pydicom's plug-ins or imagecodecs: stored values as a numpy array."""

import io
from dataclasses import replace
from importlib.util import find_spec
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UnreadableImage
from medical.codestreams import FrameSize, check_codestream
from medical.dicom import registered_name
from medical.elements import MALFORMED, value
from medical.pixel_format import CODECS, PixelFormat

if TYPE_CHECKING:
    from pydicom import FileDataset
    from pydicom.pixels.decoders.base import Decoder

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
RETIRED_JPEG = frozenset({"1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"})
"""Spectral selection (process 6 and 8) and full progression (process 10 and 12)."""

MAX_EXPANSION = (2**26, 1000)
"""A compressed frame may grow to so many bytes, and above that to so many times its own size."""

NO_END = "compressed pixel data without an end: perhaps truncated"

EXTRA = "'grrcoca[dicom-extra]'"

_PLUGINS = ("pylibjpeg", "pillow", "gdcm", "pydicom")
"""Codecs in the order they are asked; GDCM last of the three, for it writes to stderr on bad JPEG 2000."""

_PACKAGES = {
    "JPEG Baseline": "pillow",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "python-gdcm",
}
"""What decodes a transfer syntax, by the first words of its name; the first that fits."""


def decode_frame(dataset: "FileDataset", fmt: PixelFormat, frame: int) -> tuple[NDArray[Any], PixelFormat]:
    """Decode one frame; call within `medical.dicom.quiet_pydicom`.

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
    _require_codec(fmt)
    data = value(dataset, fmt.keyword)
    if not isinstance(data, bytes):
        raise UnreadableImage("truncated", f"{fmt.keyword} is empty")
    try:
        if not fmt.codec:
            return _decode_by_pydicom(dataset, data, _check_length(fmt, len(data)), frame)
        encoded, fmt = _encoded_frame(dataset, data, fmt, frame)
        if _needs_imagecodecs(fmt.transfer_syntax, fmt.bits_stored):
            return _decode_by_imagecodecs(encoded, fmt)
        return _decode_by_pydicom(dataset, data, fmt, frame)
    except RecursionError:
        raise
    except (*MALFORMED, RuntimeError, IndexError, EOFError, OSError) as error:
        # The codecs' own words may quote the file and are dropped
        name = registered_name(fmt.transfer_syntax)
        kind = "truncated" if NO_END in fmt.warnings else "damaged"
        raise UnreadableImage(kind, f"{name} pixel data cannot be decoded ({type(error).__name__})") from None


def decodable() -> dict[str, str]:
    """Transfer syntaxes by registered name, each with the package it lacks; empty where it can be decoded."""
    from pydicom import uid

    native = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
    lacking = {syntax.name: "" for syntax in (*native, uid.DeflatedExplicitVRLittleEndian)}
    lacking |= {uid.UID(syntax).name: _missing_package(syntax, 8) for syntax in CODECS}
    if twelve_bits := _missing_package(JPEG_EXTENDED, 12):
        name = uid.UID(JPEG_EXTENDED).name
        lacking[name] = lacking[name] or f"{twelve_bits} for 12-bit samples"
    return lacking


def _require_codec(fmt: PixelFormat) -> None:
    """Refuse what nothing installed decodes.

    Raises:
        UnreadableImage: ``"not supported"`` or ``"codec missing"``, with the transfer syntax by name.
    """
    name = registered_name(fmt.transfer_syntax) or "a private transfer syntax"
    try:
        missing = _missing_package(fmt.transfer_syntax, fmt.bits_stored)
    except NotImplementedError:
        raise UnreadableImage("not supported", f"transfer syntax {name}") from None
    if missing:
        raise UnreadableImage("codec missing", f"{name}: pip install {missing}")


def _missing_package(uid: str, bits_stored: int) -> str:
    """The package that is to be installed before a transfer syntax can be decoded; empty where none is.

    Raises:
        NotImplementedError: There is none.
    """
    if _needs_imagecodecs(uid, bits_stored):
        return "" if find_spec("imagecodecs") else EXTRA
    return "" if _decoder(uid).is_available else _package(registered_name(uid))


def _needs_imagecodecs(uid: str, bits_stored: int) -> bool:
    return uid in RETIRED_JPEG or (uid == JPEG_EXTENDED and bits_stored > 8)


def _decoder(uid: str) -> "Decoder":
    from pydicom.pixels.decoders.base import get_decoder

    decoder: Decoder = get_decoder(uid)
    return decoder


def _package(name: str) -> str:
    return next((package for start, package in _PACKAGES.items() if name.startswith(start)), "pydicom")


def _decode_by_pydicom(
    dataset: "FileDataset", data: bytes, fmt: PixelFormat, frame: int
) -> tuple[NDArray[Any], PixelFormat]:
    decoder = _decoder(fmt.transfer_syntax)
    # HighBit above BitsStored - 1: let the decoder mask and sign up to it, then drop the bits below
    below = fmt.high_bit + 1 - fmt.bits_stored if fmt.codec in ("", "RLE") else 0
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
    if tables := _extended_offsets(dataset):
        options["extended_offsets"] = tables
    plugin = next((name for name in _PLUGINS if name in decoder.available_plugins), "")
    stored, found = decoder.as_array(data, index=frame, decoding_plugin=plugin, **options)
    photometric = str(found["photometric_interpretation"])
    if fmt.samples == 3 and photometric != "RGB":
        raise UnreadableImage("not supported", f"PhotometricInterpretation {photometric}")
    return stored >> below if below else stored, replace(fmt, photometric=photometric)


def _decode_by_imagecodecs(encoded: bytes, fmt: PixelFormat) -> tuple[NDArray[Any], PixelFormat]:
    """A frame of 12-bit or retired JPEG; a JPEG sample has no sign, so that of the file is put back."""
    from imagecodecs import jpeg8_decode

    if fmt.samples == 1:
        stored = jpeg8_decode(encoded)
    else:
        coded = "RGB" if fmt.photometric == "RGB" else "YCBCR"
        stored = jpeg8_decode(encoded, colorspace=coded, outcolorspace="RGB")
        fmt = replace(fmt, photometric="RGB")
    if fmt.signed:
        above = max(16 - fmt.bits_stored, 0)
        stored = (stored.astype(np.uint16) << above).view(np.int16) >> above
    return stored, fmt


def _encoded_frame(dataset: "FileDataset", data: bytes, fmt: PixelFormat, frame: int) -> tuple[bytes, PixelFormat]:
    """The compressed bytes of one frame, once they are found to promise no more than the data set."""
    from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments

    buffer = io.BytesIO(data)
    parse_basic_offsets(buffer)
    fragments, _ = parse_fragments(buffer)
    if fragments < fmt.frames:
        raise UnreadableImage("truncated", f"{fragments:,} fragments of pixel data for {fmt.frames:,} frames")
    encoded = get_frame(data, frame, number_of_frames=fmt.frames, extended_offsets=_extended_offsets(dataset))
    if MAX_EXPANSION[0] < fmt.frame_bits // 8 > MAX_EXPANSION[1] * len(encoded):
        raise UnreadableImage("damaged", f"{len(encoded):,} bytes of compressed pixel data are too few for the image")
    check_codestream(encoded, fmt.codec, FrameSize(fmt.rows, fmt.columns, fmt.samples))
    if fmt.codec != "RLE" and b"\xff\xd9" not in encoded[-16:]:
        fmt = replace(fmt, warnings=(*fmt.warnings, NO_END))
    return encoded, fmt


def _extended_offsets(dataset: "FileDataset") -> tuple[bytes, bytes] | None:
    offsets, lengths = value(dataset, "ExtendedOffsetTable"), value(dataset, "ExtendedOffsetTableLengths")
    return (offsets, lengths) if isinstance(offsets, bytes) and isinstance(lengths, bytes) else None


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
