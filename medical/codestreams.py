"""What a compressed frame says of its own size, looked at before a codec allocates by it.

A file of some hundred bytes can promise its codec 65,535 squared pixels. The codecs believe the codestream and not the
data set around it, so the two are compared first.
"""

import struct
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from grrcoca_cli.errors import UnreadableImage

MAX_PRECISION = 16
"""Bits of a JPEG sample; GDCM aborts the interpreter on more."""

MAX_TILES = 2**14
"""OpenJPEG holds some 6 kB of parameters for each tile of a JPEG 2000 image, used or not."""

RLE_SLACK = 2**26
"""Bytes that one RLE segment may always expand to; a run of two bytes becomes at most 128."""

_LENGTHLESS = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG: TEM, restart markers, SOI
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF of JPEG, SOF55 of JPEG-LS


class FrameSize(NamedTuple):
    """Height and width in pixels, and samples a pixel."""

    rows: int
    columns: int
    samples: int


def check_codestream(frame: bytes, codec: str, expected: FrameSize) -> None:
    """Refuse a compressed frame that would expand to something else than the data set describes.

    Args:
        frame: One encoded frame, its fragments joined.
        codec: ``"JPEG"`` (JPEG-LS too), ``"JPEG 2000"`` (HTJ2K too) or ``"RLE"``.
        expected: Size by the data set.

    Raises:
        UnreadableImage: ``"damaged"``.
    """
    if codec == "RLE":
        _check_rle(frame, expected)
        return
    found = jpeg_size(frame) if codec == "JPEG" else jpeg_2000_size(frame)
    if found is None:
        raise UnreadableImage("damaged", f"{codec} pixel data without a sound frame header")
    if found != expected:
        raise UnreadableImage(
            "damaged",
            f"{codec} codestream of {' x '.join(map(str, found))} samples in an image of "
            f"{' x '.join(map(str, expected))} (rows x columns x samples a pixel)",
        )


def jpeg_size(frame: bytes) -> FrameSize | None:
    """What the frame header of a JPEG or JPEG-LS stream says (ITU-T T.81 B.2.2, T.87 C.2.2); None without one."""
    at = frame.find(b"\xff\xd8")
    while 0 <= at < len(frame) - 9:
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _LENGTHLESS:
            at += 2
        elif marker in _FRAME_HEADERS:
            if frame[at + 4] > MAX_PRECISION:
                return None
            return FrameSize(*struct.unpack_from(">HHB", frame, at + 5))
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def jpeg_2000_size(frame: bytes) -> FrameSize | None:
    """What the SIZ marker of a JPEG 2000 codestream says (ITU-T T.800 A.5.1), within a JP2 box or bare.

    None where there is none, or one that is unsound: an empty image, or more than `MAX_TILES` tiles.
    """
    at = frame.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 42 > len(frame):
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, samples = struct.unpack_from(
        ">8IH", frame, at + 8
    )
    if not (tile_width and tile_height) or right <= left or bottom <= top:
        return None
    if ceil((right - tile_left) / tile_width) * ceil((bottom - tile_top) / tile_height) > MAX_TILES:
        return None
    return FrameSize(bottom - top, right - left, samples)


def _check_rle(frame: bytes, expected: FrameSize) -> None:
    """Refuse an RLE frame (PS3.5 G) of which a segment expands far past one byte a pixel."""
    if len(frame) < 64:
        raise UnreadableImage("damaged", "RLE pixel data without a header")
    count, *offsets = struct.unpack_from("<16I", frame)
    limit = max(RLE_SLACK, 2 * expected.rows * expected.columns)
    for start, end in pairwise([*offsets[: min(count, 15)], len(frame)]):
        if (min(end, len(frame)) - start) * 64 > limit and _rle_length(frame[start:end], limit) > limit:
            raise UnreadableImage("damaged", "an RLE segment expands past the image")


def _rle_length(segment: bytes, limit: int) -> int:
    """Bytes that a segment expands to; counting stops past `limit`."""
    at, length = 0, 0
    while at < len(segment) and length <= limit:
        code = segment[at]
        if code < 128:  # so many bytes and one more follow as they are
            length, at = length + code + 1, at + code + 2
        elif code > 128:  # the next byte, again and again
            length, at = length + 257 - code, at + 2
        else:
            at += 1
    return length
