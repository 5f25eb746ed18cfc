"""Small files that promise much: each refused by name in a process of its own, in 2 s of computing and 500 MB."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from grrcoca_cli.errors import UnreadableImage
from medical.codestreams import FrameSize, jpeg_2000_size, jpeg_size
from medical.image import read_image

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
MEGABYTE = 2**20
LIMIT_BYTES, LIMIT_SECONDS = 500 * MEGABYTE, 2.0

CHILD = """
import json, resource, sys, time
from pathlib import Path
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (4 * limit, 4 * limit))
import pydicom.encaps, pydicom.pixels.decoders.base
from grrcoca_cli.errors import UnreadableImage
from medical.image import read_image
began = time.process_time()
try:
    read_image(Path(sys.argv[1]))
    kind = "read"
except UnreadableImage as error:
    kind = str(error)
seconds = time.process_time() - began
# Not ru_maxrss: that of a child begins with the memory of whoever started it
status = Path("/proc/self/status")
peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0
print(json.dumps([kind, seconds, peak]))
"""


def deflated(make_dicom, inflated: bytes) -> bytes:
    data = make_dicom(GREY, syntax=DeflatedExplicitVRLittleEndian)
    end_of_meta = 144 + int.from_bytes(data[140:144], "little")
    return data[:end_of_meta] + zlib.compress(inflated, 9, -zlib.MAX_WBITS)


def nested(make_dicom, depth: int) -> bytes:
    data = make_dicom(GREY)
    item = b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"  # VOILUTSequence, an item
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + item * depth + data[at:]


def compressed(make_dicom, syntax: str, frame: bytes, **elements) -> bytes:
    return make_dicom(GREY, syntax=syntax, PixelData=encapsulate([frame]), **elements)


def jpeg_frame(rows: int, columns: int, *, marker: int = 0xC0, bits: int = 8) -> bytes:
    """Start of image, an application segment with a false frame header in it, a frame header, a scan of nothing."""
    false = b"\xff\xe1\x00\x0c\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01"
    head = struct.pack(">BBHBHHBBBB", 0xFF, marker, 11, bits, rows, columns, 1, 1, 0x11, 0)
    return b"\xff\xd8" + false + head + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(40) + b"\xff\xd9"


def jpeg_2000_frame(rows: int, columns: int, tile: int = 0) -> bytes:
    size = struct.pack(">HHH8IH3B", 0xFF51, 41, 0, columns, rows, 0, 0, tile or columns, tile or rows, 0, 0, 1, 7, 1, 1)
    coding = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x00\x04\x04\x00\x01\xff\x5c\x00\x04\x40\x40"
    tile_part = b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x0f\x00\x01\xff\x93\x00"
    return b"\xff\x4f" + size + coding + tile_part + b"\xff\xd9"


def rle_frame(*segments: bytes) -> bytes:
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


BIG = {"Rows": 8192, "Columns": 8192}
BOMBS: dict[str, tuple[Callable[..., bytes], str]] = {
    "deflate": (lambda make: deflated(make, bytes(128 * MEGABYTE)), "too large: the deflated data set"),
    "200 nested sequences": (lambda make: nested(make, 200), "nested too deeply"),
    "3000 nested sequences": (lambda make: nested(make, 3000), "nested too deeply"),
    "65535 squared": (lambda make: make(GREY, Rows=65535, Columns=65535), "too large: 65535 x 65535 pixels"),
    "frames": (lambda make: make(GREY, NumberOfFrames=2**31 - 1), "truncated: 64 bytes of pixel data"),
    "compressed frames": (
        lambda make: compressed(make, JPEGBaseline8Bit, jpeg_frame(8, 8), NumberOfFrames=2**31 - 1),
        "truncated: 1 fragments of pixel data for 2,147,483,647 frames",
    ),
    "pixel data of 4 GB": (
        lambda make: make(GREY).replace(b"OB\0\0\x40\0\0\0", b"OB\0\0\xfe\xff\xff\xff")[:-4],
        "truncated: 60 bytes of pixel data, 64 expected",
    ),
    "RLE run": (
        lambda make: compressed(make, RLELossless, rle_frame(b"\x81\0" * (8 * MEGABYTE))),
        "damaged: an RLE segment",
    ),
    "RLE of a promised size": (
        lambda make: compressed(make, RLELossless, rle_frame(b"\x81\0"), **BIG),
        "damaged: RLE Lossless pixel data cannot be decoded",
    ),
    "JPEG 2000 size": (
        lambda make: compressed(make, JPEG2000Lossless, jpeg_2000_frame(65535, 65535)),
        "damaged: JPEG 2000 codestream of 65535 x 65535 x 1 samples in an image of 8 x 8 x 1",
    ),
    "JPEG 2000 of a promised size": (
        lambda make: compressed(
            make, JPEG2000Lossless, jpeg_2000_frame(8192, 8192), **BIG, BitsAllocated=16, BitsStored=16
        ),
        "damaged: ",
    ),
    "JPEG 2000 tiles": (
        lambda make: compressed(make, JPEG2000Lossless, jpeg_2000_frame(1024, 1024, tile=4), Rows=1024, Columns=1024),
        "damaged: JPEG 2000 pixel data without a sound frame header",
    ),
    **{
        f"{name} size": (
            lambda make, syntax=syntax, options=options: compressed(make, syntax, jpeg_frame(65535, 65535, **options)),
            "damaged: JPEG codestream of 65535 x 65535 x 1 samples in an image of 8 x 8 x 1",
        )
        for name, syntax, options in (
            ("JPEG", JPEGBaseline8Bit, {}),
            ("lossless JPEG", JPEGLosslessSV1, {"marker": 0xC3}),
            ("JPEG-LS", JPEGLSLossless, {"marker": 0xF7}),
        )
    },
    "12-bit JPEG size": (
        lambda make: make(
            GREY.astype(np.uint16),
            syntax=JPEGExtended12Bit,
            BitsStored=12,
            HighBit=11,
            PixelData=encapsulate([jpeg_frame(65535, 65535, marker=0xC1, bits=12)]),
        ),
        "JPEG codestream of 65535 x 65535 x 1 samples in an image of 8 x 8 x 1",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name(make_dicom, tmp_path, name):
    make, words = BOMBS[name]
    if name == "12-bit JPEG size":
        pytest.importorskip("imagecodecs")
    path = tmp_path / "bomb.dcm"
    path.write_bytes(make(make_dicom))
    command = [sys.executable, "-c", CHILD, str(path), str(LIMIT_BYTES)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert output.returncode == 0, output.stderr
    refusal, seconds, peak = json.loads(output.stdout)
    assert words in refusal
    assert seconds < LIMIT_SECONDS
    assert peak < LIMIT_BYTES


def test_a_segmented_palette_that_copies_itself_is_no_longer_than_it_says(make_dicom):
    """Each of 5,000 references stands for 60,000 entries."""
    linear = [0, 1, 0, 1, 60000, 65535]
    words = np.array(linear + [2, 2, 0, 0] * 5000, "<u2").tobytes()
    palette = {}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [0, 0, 16]
        palette[f"Segmented{colour}PaletteColorLookupTableData"] = words
    image = read_image(make_dicom(GREY, PhotometricInterpretation="PALETTE COLOR", **palette))
    assert image.pixels[0, 7, 7] == pytest.approx(63 / 60000, abs=1e-5)


@pytest.mark.parametrize("words", [[0, 0, 1, 1], [9, 1, 1], [1, 2, 3], [2, 1, 0, 0, 0], [0, 1, 5, 2, 9, 6, 0, 2, 1, 0]])
def test_a_segmented_palette_that_makes_no_sense_is_refused(make_dicom, words):
    palette = {}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()
    with pytest.raises(UnreadableImage, match="damaged"):
        read_image(make_dicom(GREY, PhotometricInterpretation="PALETTE COLOR", **palette))


def test_sizes_are_read_past_fill_bytes_and_false_headers():
    frame = jpeg_frame(300, 200, marker=0xC1)
    assert jpeg_size(frame) == FrameSize(300, 200, 1)
    assert jpeg_size(frame.replace(b"\xff\xc1", b"\xff\xff\xff\xc1", 1)) == FrameSize(300, 200, 1)
    assert jpeg_2000_size(b"a JP2 box" + jpeg_2000_frame(300, 200)) == FrameSize(300, 200, 1)


@pytest.mark.parametrize("length", range(60))
def test_a_header_that_is_cut_short_is_none(length):
    for frame, size in ((jpeg_frame(300, 200), jpeg_size), (jpeg_2000_frame(300, 200), jpeg_2000_size)):
        assert size(frame[:length]) in (None, FrameSize(300, 200, 1))


@pytest.mark.parametrize(("count", "offset"), [(0, 64), (1, 2**32 - 1), (2**32 - 1, 64)])
def test_an_rle_header_that_points_out_of_the_frame_is_refused(make_dicom, count, offset):
    frame = rle_frame(b"\x07" + bytes(8) + b"\xc9\x05")
    assert read_image(compressed(make_dicom, RLELossless, frame)).pixels.shape == (1, 8, 8)
    with pytest.raises(UnreadableImage, match="damaged"):
        read_image(compressed(make_dicom, RLELossless, struct.pack("<II", count, offset) + frame[8:]))


def test_nesting_that_real_files_have_is_read(make_dicom):
    """Ten deep; an enhanced object has four."""
    inner = Dataset()
    inner.RescaleSlope = 1
    for _ in range(10):
        outer = Dataset()
        outer.VOILUTSequence = [inner]
        inner = outer
    image = read_image(make_dicom(GREY, VOILUTSequence=inner.VOILUTSequence, WindowCenter=32, WindowWidth=64))
    assert image.pixels[0, 7, 7] == 1
