"""`read_image`: one picture of any kind, DICOM or not, as pixels in [0, 1] and a description that is safe to show."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import AnySource, ImageSource, as_source
from grrcoca_cli.errors import UnreadableImage, UsageError
from medical.aspect import pixel_aspect, square
from medical.colour import apply_palette, scale_colour
from medical.decoding import decode_frame
from medical.dicom import (
    HEAD_BYTES,
    is_dicom,
    modality,
    parse,
    quiet_pydicom,
    refuse_non_pictures,
    registered_name,
)
from medical.elements import code, number
from medical.intensity import apply_modality, padding_mask, to_unit_range
from medical.pixel_format import PALETTE, PixelFormat, pixel_format
from medical.windows import WindowChoice, WindowUsed, parse_windows

if TYPE_CHECKING:
    from pydicom import FileDataset

    from grrcoca_cli.data.base import Pixels

CINE_MODALITIES = frozenset({"US", "IVUS", "XA", "RF", "ES", "GM", "XC", "OP"})
CINE_ELEMENTS = ("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")


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

    def __repr__(self) -> str:
        what = self.description
        kind = what.modality or what.transfer_syntax
        frame = f", frame {what.frame_read} of {what.frames}" if what.frames > 1 else ""
        return f"RadiologyImage({self.pixels.shape}, {kind}{frame}, window {what.window})"


def read_image(source: AnySource, *, frame: int | str = "auto", window: str | None = None) -> RadiologyImage:
    """Read one picture, known by its content: DICOM, else PNG, JPEG, TIFF, WebP, BMP or GIF.

    Args:
        source: A file, or the bytes of one.
        frame: Index from 0, ``"first"``, ``"middle"``, or ``"auto"``: the first of a cine, the middle of a volume.
        window: None or ``"auto"`` for the file's VOI LUT or first window, else percentiles; the index (``"1"``) or the
            name of a window of the file; centre and width in modality units (``"40/400"``); ``"percentile"``; or a
            name of `medical.windows.CT_PRESETS`, which is used on CT alone. Three of them with commas between them
            make three channels of a grey picture.

    Raises:
        UnreadableImage: The file gives no pixels; the kind and the detail hold no value out of it.
        NotAnImage: It is neither DICOM nor a picture.
        UsageError: `source`, `frame` or `window` is not understood.
    """
    source = as_source(source)
    choices, frame = parse_windows(window), _parse_frame(frame)
    if not is_dicom(read_head(source)):
        return _read_picture(source, choices)
    with named_refusals():
        dataset, fmt = _open_dicom(source)
        return _render(dataset, fmt, _frame_index(dataset, fmt.frames, frame), choices)


def read_frames(source: AnySource, *, window: str | None = None) -> Iterator[RadiologyImage]:
    """Every frame of a file in order, each decoded when it is asked for; one of a picture that is not DICOM.

    The file is opened and parsed once, with the first frame. A frame that cannot be decoded ends the iteration.

    Args:
        source: A file, or the bytes of one.
        window: As `read_image` takes it.

    Raises:
        UnreadableImage: The file, or the frame that is due, gives no pixels.
        NotAnImage: It is neither DICOM nor a picture.
        UsageError: `source` or `window` is not understood; raised at once.
    """
    return _frames(as_source(source), parse_windows(window))


def read_pixels(source: AnySource, *, window: str | None = None) -> "Pixels":
    """The pixels of `read_image` alone: the image reader a data set takes."""
    return read_image(source, window=window).pixels


def _frames(source: ImageSource, choices: tuple[WindowChoice, ...]) -> Iterator[RadiologyImage]:
    if not is_dicom(read_head(source)):
        yield _read_picture(source, choices)
        return
    with named_refusals():
        dataset, fmt = _open_dicom(source)
    for index in range(fmt.frames):
        with named_refusals():  # anew for each: what it changes is the process's, and between frames the caller's
            image = _render(dataset, fmt, index, choices)
        yield image


@contextmanager
def named_refusals() -> Iterator[None]:
    """The one boundary where a bad file becomes a named refusal. The cause is dropped: its words quote the file."""
    try:
        with quiet_pydicom():
            yield
    except (UnreadableImage, ImportError):
        raise
    except MemoryError:
        raise UnreadableImage("too large", "not enough memory to decode it") from None
    except RecursionError:
        raise UnreadableImage("nested too deeply", "sequences within sequences") from None
    except Exception as error:
        raise UnreadableImage("damaged", f"DICOM that cannot be read ({type(error).__name__})") from None


def _parse_frame(frame: int | str) -> int | str:
    if isinstance(frame, str) and frame.isdecimal():
        frame = int(frame)
    if frame in ("auto", "first", "middle") or (isinstance(frame, int) and frame >= 0):
        return frame
    raise UsageError(f"frame {frame!r} is not understood; give an index from 0, 'first', 'middle' or 'auto'")


def read_head(source: ImageSource) -> bytes:
    """The first `HEAD_BYTES` of a file.

    Raises:
        UnreadableImage: It cannot be opened.
    """
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    try:
        with source.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise UnreadableImage("cannot be opened", error.strerror or type(error).__name__) from None


def _read_picture(source: ImageSource, choices: tuple[WindowChoice, ...]) -> RadiologyImage:
    from grrcoca_cli.data.pictures import read_picture

    pixels = read_picture(source)
    channels, rows, columns = pixels.shape
    colour = "MONOCHROME2" if channels == 1 else "RGB"
    used, warnings = WindowUsed("none needed"), _passed_over(choices)
    return RadiologyImage(pixels, Description("", rows, columns, 1, 0, colour, "not DICOM", used, tuple(warnings)))


def _passed_over(choices: tuple[WindowChoice, ...]) -> list[str]:
    asked_for = len(choices) > 1 or choices != (WindowChoice(),)
    return ["the window asked for is not used: not a grey DICOM image"] if asked_for else []


def _open_dicom(source: ImageSource) -> tuple["FileDataset", PixelFormat]:
    dataset = parse(source)
    refuse_non_pictures(dataset)
    fmt = pixel_format(dataset)
    if dataset.preamble is None:
        fmt = replace(fmt, warnings=(*fmt.warnings, "no preamble: known as DICOM by its first elements"))
    return dataset, fmt


def _render(dataset: "FileDataset", fmt: PixelFormat, index: int, choices: tuple[WindowChoice, ...]) -> RadiologyImage:
    stored, fmt = decode_frame(dataset, fmt, index)
    warnings = list(fmt.warnings)
    if fmt.samples == 3 or fmt.photometric == PALETTE:
        levels = apply_palette(stored, dataset) if fmt.samples == 1 else scale_colour(stored, fmt.bits_stored)
        pixels, used = levels.transpose(2, 0, 1), WindowUsed("none needed: colour")
        warnings += _passed_over(choices)
    else:
        pixels, used = _grey_channels(stored, dataset, fmt, index, choices, warnings)
    return RadiologyImage(
        square(np.ascontiguousarray(pixels, np.float32), pixel_aspect(dataset, index), warnings),
        Description(
            modality=modality(dataset),
            rows=fmt.rows,
            columns=fmt.columns,
            frames=fmt.frames,
            frame_read=index,
            photometric_interpretation=fmt.photometric,
            transfer_syntax=registered_name(fmt.transfer_syntax),
            window=used,
            warnings=tuple(dict.fromkeys(warnings)),  # each once, in order
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


def _grey_channels(
    stored: NDArray[Any],
    dataset: "FileDataset",
    fmt: PixelFormat,
    frame: int,
    choices: tuple[WindowChoice, ...],
    warnings: list[str],
) -> tuple[NDArray[Any], WindowUsed]:
    """Stored values (H, W) to [0, 1], dark to dense, padding black: a channel for each window, (C, H, W)."""
    if not np.isfinite(stored).any():
        raise UnreadableImage("no finite pixel")
    padding = padding_mask(stored, dataset, fmt.bits_stored, fmt.signed)
    values = apply_modality(stored, dataset, frame)
    # Either says that the lowest value is white; a file that has both means it once
    inverse = fmt.photometric == "MONOCHROME1" or code(dataset, "PresentationLUTShape") == "INVERSE"
    channels, windows = [], []
    for choice in choices:
        levels, used, more = to_unit_range(values, padding, dataset, frame, choice, is_ct=modality(dataset) == "CT")
        levels = 1 - levels if inverse else levels
        levels[padding] = 0
        channels.append(np.nan_to_num(levels))
        windows.append(used)
        warnings += more
    return np.stack(channels), windows[0] if len(windows) == 1 else WindowUsed("; ".join(map(str, windows)))
