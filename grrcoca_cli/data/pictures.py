"""Pictures that are not DICOM: encoded bytes to pixels. Needs numpy and Pillow alone, so that a worker starts fast."""

import contextlib
import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from grrcoca_cli.data.base import AnySource, Pixels, as_source
from grrcoca_cli.errors import NotAnImage, UnreadableImage

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
"""Pillow's names of the formats that are read; its rarer parsers stay shut."""

MAX_PIXELS = 80_000_000
"""Largest picture that is decoded: a whole-slide thumbnail or an 80-megapixel camera, 240 MB as 8-bit RGB."""

_MAGIC = re.compile(
    rb"\x89PNG|\xff\xd8\xff|II[*+]\0|MM\0[*+]|GIF8|RIFF.{4}WEBP|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", re.DOTALL
)
_BITS_PER_SAMPLE = 258  # TIFF tag


def read_picture(source: AnySource) -> Pixels:
    """One picture as float32 (C, H, W) in [0, 1], upright; C is 1 for grey and 3 for colour.

    The format is known by content, never by name. 8-bit channels are divided by 255 and 16-bit grey by its own
    range (65535, or what a TIFF's bits per sample say). 32-bit integers and floats have no range of their
    own and are stretched from their minimum to their maximum, unless all lie in [0, 1] already. Pillow reads 16-bit
    colour by its upper 8 bits. Transparent parts are put on white, as img2dataset does: most such pictures were drawn
    for a white page. Of an animation the first frame counts.

    Args:
        source: A file, or its bytes.

    Raises:
        NotAnImage: The content is none of `FORMATS`.
        UnreadableImage: The file is missing, empty, truncated, damaged or above `MAX_PIXELS`.
    """
    source = as_source(source)
    if isinstance(source, Path) and not source.is_file():
        raise UnreadableImage("no such file")
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            head = file.read(18)
            if not head:
                raise UnreadableImage("empty file")
            if not _MAGIC.match(head):
                raise NotAnImage("not an image")
            file.seek(0)
            # Pillow warns about EXIF and size; what matters of that is an error here and the rest is noise.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with _quiet_libtiff() if head.startswith((b"II", b"MM")) else contextlib.nullcontext():
                    return _decode(file)
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("too little memory") from error
    except Exception as error:  # the boundary: Pillow's parsers let through whatever a damaged file makes them hit
        raise UnreadableImage(_kind_of(error)) from error


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Keep off stderr what libtiff says about damaged files: it writes to the descriptor, past all Python settings."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed: nothing to keep it off
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _decode(file: BinaryIO) -> Pixels:
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)  # reads the header alone
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too many pixels") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage("too many pixels")
        image.load()
        with contextlib.suppress(ValueError, TypeError, KeyError, OSError, SyntaxError, struct.error):
            ImageOps.exif_transpose(image, in_place=True)  # what it raises is damaged EXIF beside sound pixels
        return _to_pixels(image)


def _to_pixels(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return _scale(np.asarray(image)[None], 2**bits - 1)
    if image.mode in ("I", "F"):
        return _stretch(np.asarray(image)[None].astype(np.float64))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    bands = image.convert("L" if image.mode in ("1", "L") else "RGB").split()
    return _scale(np.stack([np.asarray(band) for band in bands]), 255)


def _scale(values: NDArray[np.uint8 | np.uint16], largest: int) -> Pixels:
    pixels: Pixels = np.divide(values, np.float32(largest), dtype=np.float32)
    return pixels


def _stretch(values: NDArray[np.float64]) -> Pixels:
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UnreadableImage("no finite pixel")
    low, high = float(finite.min()), float(finite.max())
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32)


def _kind_of(error: Exception) -> str:
    return "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "damaged"
