"""`read_image`: one picture of any kind, DICOM or not, as pixels in [0, 1] and a description that is safe to show."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UnreadableImage, UsageError
from medical.colour import apply_palette, scale_colour
from medical.decoding import MAX_FRAME_PIXELS, PALETTE, PixelFormat, decode_frame, pixel_format
from medical.dicom import (
    HEAD_BYTES,
    is_dicom,
    modality,
    parse,
    quiet_pydicom,
    refuse_non_pictures,
    registered_name,
)
from medical.elements import code, number, numbers, scopes
from medical.intensity import WindowChoice, WindowUsed, apply_modality, padding_mask, to_unit_range

if TYPE_CHECKING:
    from pydicom import FileDataset

    from grrcoca_cli.data.base import Pixels

CINE_MODALITIES = frozenset({"US", "IVUS", "XA", "RF", "ES", "GM", "XC", "OP"})
CINE_ELEMENTS = ("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")
MAX_ASPECT = 8.0
"""A pixel longer than this many times its width is a mistake of the header, and left as it is."""


@dataclass(frozen=True)
class Description:
    """What may be said of a file in any output: an allow-list, nothing else of the header.

    Attributes:
        modality: One of the standard's terms (``"CT"``); empty where there is none.
        rows: Stored height in pixels, before non-square pixels are squared.
        columns: Stored width in pixels.
        frames: Count of frames in the file.
        frame_read: Index of the frame in `RadiologyImage.pixels`, from 0.
        photometric_interpretation: As decoded: MONOCHROME1, MONOCHROME2, PALETTE COLOR or RGB.
        transfer_syntax: Registered name; for a picture that is not DICOM, ``"not DICOM"``.
        window: How grey levels were mapped.
        warnings: What had to be inferred or passed over, fixed phrases.
    """

    modality: str
    rows: int
    columns: int
    frames: int
    frame_read: int
    photometric_interpretation: str
    transfer_syntax: str
    window: WindowUsed
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RadiologyImage:
    """One picture, ready to be resized and captioned.

    Attributes:
        pixels: (C, H, W) float32 in [0, 1], C 1 (grey, white is dense) or 3 (RGB), square pixels.
        description: What may be said of the file.
    """

    pixels: NDArray[np.float32]
    description: Description


def read_image(source: Path | bytes, *, frame: int | str = "auto", window: str | None = None) -> RadiologyImage:
    """Read one picture, known by its content: DICOM, else PNG, JPEG, TIFF, WebP or BMP.

    Args:
        source: A file, or the bytes of one.
        frame: Index from 0, ``"first"``, ``"middle"``, or ``"auto"``: the first of a cine, the middle of a volume.
        window: None for the file's VOI LUT or first window, else percentiles; the index of a window of the file
            (``"1"``); centre and width in modality units (``"40/400"``); ``"percentile"``; or a name of
            `medical.intensity.CT_PRESETS`, which is used on CT alone.

    Raises:
        UnreadableImage: The file gives no pixels; the kind and the detail hold no value out of it.
        NotAnImage: It is neither DICOM nor a picture.
        UsageError: `frame` or `window` is not understood.
    """
    choice, frame = WindowChoice.parse(window), _parse_frame(frame)
    if not is_dicom(_head(source)):
        return _read_picture(source)
    try:
        with quiet_pydicom():
            return _read_dicom(source, frame, choice)
    except (UnreadableImage, ImportError):
        raise
    except MemoryError:
        raise UnreadableImage("too large", "not enough memory to decode it") from None
    # The one boundary where a bad file becomes a named refusal. The cause is dropped: its words quote the file.
    except Exception as error:
        raise UnreadableImage("damaged", f"DICOM that cannot be read ({type(error).__name__})") from None


def read_pixels(source: Path | bytes, *, window: str | None = None) -> "Pixels":
    """The pixels of `read_image` alone: the image reader a data set takes."""
    return read_image(source, window=window).pixels


def _parse_frame(frame: int | str) -> int | str:
    if isinstance(frame, str) and frame.isdecimal():
        frame = int(frame)
    if frame in ("auto", "first", "middle") or (isinstance(frame, int) and frame >= 0):
        return frame
    raise UsageError(f"frame {frame!r} is not understood; give an index from 0, 'first', 'middle' or 'auto'")


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    try:
        with source.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise UnreadableImage("cannot be opened", error.strerror or type(error).__name__) from None


def _read_picture(source: Path | bytes) -> RadiologyImage:
    from grrcoca_cli.data.images import read_picture

    pixels = read_picture(source)
    channels, rows, columns = pixels.shape
    colour = "MONOCHROME2" if channels == 1 else "RGB"
    return RadiologyImage(pixels, Description("", rows, columns, 1, 0, colour, "not DICOM", WindowUsed("none needed")))


def _read_dicom(source: Path | bytes, frame: int | str, choice: WindowChoice) -> RadiologyImage:
    dataset = parse(source)
    refuse_non_pictures(dataset)
    fmt = pixel_format(dataset)
    index = _frame_index(dataset, fmt.frames, frame)
    stored, fmt = decode_frame(dataset, fmt, index)
    warnings = list(fmt.warnings)
    if dataset.preamble is None:
        warnings.append("no preamble: known as DICOM by its first elements")
    if fmt.samples == 3 or fmt.photometric == PALETTE:
        levels = apply_palette(stored, dataset) if fmt.samples == 1 else scale_colour(stored, fmt.bits_stored)
        pixels, used = levels.transpose(2, 0, 1), WindowUsed("none needed: colour")
    else:
        grey, used, more = _grey_levels(stored, dataset, fmt, index, choice)
        pixels = grey[None]
        warnings += more
    return RadiologyImage(
        _square(np.ascontiguousarray(pixels, np.float32), _pixel_aspect(dataset, index), warnings),
        Description(
            modality=modality(dataset),
            rows=fmt.rows,
            columns=fmt.columns,
            frames=fmt.frames,
            frame_read=index,
            photometric_interpretation=fmt.photometric,
            transfer_syntax=registered_name(fmt.transfer_syntax),
            window=used,
            warnings=tuple(warnings),
        ),
    )


def _frame_index(dataset: "FileDataset", frames: int, frame: int | str) -> int:
    if frame == "auto":
        is_cine = modality(dataset) in CINE_MODALITIES or any(number(dataset, name) for name in CINE_ELEMENTS)
        frame = "first" if is_cine else "middle"
    index = frame if isinstance(frame, int) else {"first": 0, "middle": frames // 2}[frame]
    if index >= frames:
        raise UnreadableImage("no such frame", f"frame {index} of {frames}, counted from 0")
    return index


def _grey_levels(
    stored: NDArray[Any], dataset: "FileDataset", fmt: PixelFormat, frame: int, choice: WindowChoice
) -> tuple[NDArray[Any], WindowUsed, list[str]]:
    """Stored values (H, W) to [0, 1], dark to dense, padding black."""
    if not np.isfinite(stored).any():
        raise UnreadableImage("no finite pixel")
    padding = padding_mask(stored, dataset, fmt.bits_stored, fmt.signed)
    values = apply_modality(stored, dataset, frame)
    levels, used, warnings = to_unit_range(values, padding, dataset, frame, choice, is_ct=modality(dataset) == "CT")
    # Either says that the lowest value is white; a file that has both means it once
    if fmt.photometric == "MONOCHROME1" or code(dataset, "PresentationLUTShape") == "INVERSE":
        levels = 1 - levels
    levels[padding] = 0
    return np.nan_to_num(levels), used, warnings


def _pixel_aspect(dataset: "FileDataset", frame: int) -> float:
    """Height of a pixel over its width; 1 where the file does not say or says nonsense."""
    for scope in scopes(dataset, frame, "PixelMeasuresSequence"):
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
            pair = numbers(scope, name)
            if len(pair) == 2 and min(pair) > 0:
                return pair[0] / pair[1]
    return 1.0


def _square(pixels: NDArray[np.float32], aspect: float, warnings: list[str]) -> NDArray[np.float32]:
    """Stretch (C, H, W) along the pixels' longer side until they are square; within 1 % nothing is done."""
    from PIL import Image

    rows, columns = pixels.shape[1:]
    height, width = round(rows * max(aspect, 1)), round(columns * max(1 / aspect, 1))
    if abs(aspect - 1) <= 0.01:
        return pixels
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT or height * width > MAX_FRAME_PIXELS:
        warnings.append("pixels far from square: left as they are")
        return pixels
    warnings.append("pixels were not square: resampled")
    channels = [Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in pixels]
    squared: NDArray[np.float32] = np.stack([np.asarray(channel, np.float32) for channel in channels]).clip(0, 1)
    return squared
