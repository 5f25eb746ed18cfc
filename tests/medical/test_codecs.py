"""Compressed pixel data: one slice in fourteen syntaxes, 12-bit JPEG by the extra, fragments, and what is missing."""

import io
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.decoders import JPEG2000LosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import JPEG2000, MPEG2MPML, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from grrcoca_cli.errors import UnreadableImage
from medical import decoding
from medical.decoding import decodable
from medical.image import read_frames, read_image

LOSSLESS = ["deflated", "explicit_be", "j2k_lossless", "jpeg_p14", "jpeg_p14sv1", "jpegls", "rle"]
LOSSY = {  # greatest and mean difference in HU, from the folder's SOURCE.md
    "j2k_lossy": (5, 1),
    "jpegls_near": (1, 1),
    "jpeg_p1_8bit": (64.2, 19.8),
}
TWELVE_BITS = {
    "jpeg_p2_4_12bit": "JPEG Extended (Process 2 and 4)",
    "jpeg_p6_8_retired": "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)",
    "jpeg_p10_12_retired": "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)",
}
WIDTH = 6000
WIDE = f"-399.5/{WIDTH + 1}"
"""From -3400 to 2600 HU: nothing of the slice is clipped."""

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}
needs_the_extra = pytest.mark.skipif(find_spec("imagecodecs") is None, reason="imagecodecs is not installed")


@pytest.fixture
def without_the_extra(monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None if name == "imagecodecs" else find_spec(name))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)


@pytest.fixture(scope="module")
def slices(shared_data: Path):
    """Reads ``CT_ts_<syntax>.dcm`` through one wide window."""
    return lambda syntax: read_image(shared_data / "dicom" / f"CT_ts_{syntax}.dcm", window=WIDE).pixels


@pytest.fixture(scope="module")
def reference(slices) -> np.ndarray:
    pixels = slices("implicit_le")
    assert 0 < pixels.min() < pixels.max() < 1
    return pixels


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_one_slice_in_lossless_syntaxes_is_equal_to_the_last_bit(slices, reference, syntax):
    assert np.array_equal(slices(syntax), reference)


@pytest.mark.parametrize("syntax", LOSSY)
def test_and_in_lossy_ones_within_what_they_lose(slices, reference, syntax):
    difference = np.abs(slices(syntax) - reference) * WIDTH
    largest, mean = LOSSY[syntax]
    assert 0 < difference.max() < largest + 0.05
    assert difference.mean() < mean + 0.05


@needs_the_extra
def test_and_in_12_bit_jpeg_by_the_extra(slices, reference):
    difference = np.abs(slices("jpeg_p2_4_12bit") - reference) * WIDTH
    assert 0 < difference.max() < 35.65
    assert difference.mean() == pytest.approx(3.8, abs=0.05)


@needs_the_extra
@pytest.mark.parametrize("syntax", ["jpeg_p6_8_retired", "jpeg_p10_12_retired"])
def test_and_in_the_retired_syntaxes_as_in_12_bit_jpeg(slices, syntax):
    assert np.array_equal(slices(syntax), slices("jpeg_p2_4_12bit"))


@pytest.mark.parametrize("syntax", TWELVE_BITS)
def test_and_refused_by_name_with_the_install_line_without_it(slices, without_the_extra, syntax):
    with pytest.raises(UnreadableImage) as caught:
        slices(syntax)
    assert str(caught.value) == f"codec missing: {TWELVE_BITS[syntax]}: pip install 'grrcoca[dicom-extra]'"


@needs_the_extra
def test_both_frames_of_a_fragmented_enhanced_ct(shared_data):
    frames = list(read_frames(shared_data / "dicom" / "CT_enhanced_2frames_fragmented_jpeg51.dcm", window="0/2000"))
    assert [frame.description.frame_read for frame in frames] == [0, 1]
    assert 0 < np.abs(frames[0].pixels - frames[1].pixels).mean() < 0.05


@needs_the_extra
@pytest.mark.parametrize("signed", [False, True])
def test_12_bit_samples_get_the_sign_of_the_file(make_dicom, signed):
    from imagecodecs import jpeg8_encode

    ramp = np.repeat(np.arange(0, 4096, 16, dtype=np.uint16)[None], 16, axis=0)
    frame = jpeg8_encode(ramp, level=100, bitspersample=12)
    elements = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    center = 0 if signed else 2048
    data = make_dicom(ramp, syntax=JPEGExtended12Bit, PixelData=encapsulate([frame]), **elements)
    pixels = read_image(data, window=f"{center}/4096").pixels[0, 0]
    expected = (ramp[0].astype(int) + (2048 if signed else 0)) % 4096 / 4095
    np.testing.assert_allclose(pixels, expected, atol=0.004)


@needs_the_extra
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_12_bit_colour_is_rgb_in_the_end(make_dicom, photometric):
    from imagecodecs import jpeg8_encode

    red = np.zeros((16, 16, 3), np.uint16) + np.array([4000, 100, 200], np.uint16)
    coded = "RGB" if photometric == "RGB" else "YCBCR"
    frame = jpeg8_encode(red, level=100, bitspersample=12, colorspace="RGB", outcolorspace=coded, subsampling="444")
    elements = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    bits = {"BitsStored": 12, "HighBit": 11}
    data = make_dicom(red, syntax=JPEGExtended12Bit, PixelData=encapsulate([frame]), **elements, **bits)
    image = read_image(data)
    np.testing.assert_allclose(image.pixels[:, 8, 8], np.array([4000, 100, 200]) / 4095, atol=0.004)
    assert image.description.photometric_interpretation == "RGB"


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def test_8_bit_jpeg_extended_needs_no_extra(make_dicom, without_the_extra):
    data = make_dicom(GREY, syntax=JPEGExtended12Bit, PixelData=encapsulate([jpeg(GREY)]), **WINDOW)
    np.testing.assert_allclose(read_image(data).pixels[0], GREY / 255, atol=3 / 255)


LEVELS = (10, 90, 200)


@pytest.mark.parametrize("layout", ["offset table", "no offset table", "fragments", "extended offset table"])
def test_frames_are_found_in_every_layout_of_fragments(make_dicom, layout):
    frames = [jpeg(np.full((16, 16), level, np.uint8)) for level in LEVELS]
    elements: dict[str, object] = {"NumberOfFrames": len(frames), **WINDOW}
    if layout == "extended offset table":
        data, elements["ExtendedOffsetTable"], elements["ExtendedOffsetTableLengths"] = encapsulate_extended(frames)
    else:
        pieces = 2 if layout == "fragments" else 1
        data = encapsulate(frames, fragments_per_frame=pieces, has_bot=layout == "offset table")
    file = make_dicom(np.zeros((16, 16), np.uint8), syntax=JPEGBaseline8Bit, PixelData=data, **elements)
    shown = [round(float(image.pixels.mean()) * 255) for image in read_frames(file)]
    assert shown == pytest.approx(LEVELS, abs=1)
    assert read_image(file, frame=2).pixels.mean() * 255 == pytest.approx(LEVELS[2], abs=1)


def test_frames_that_are_not_there_are_counted(make_dicom):
    data = encapsulate([jpeg(GREY)] * 2)
    file = make_dicom(GREY, syntax=JPEGBaseline8Bit, PixelData=data, NumberOfFrames=5)
    with pytest.raises(UnreadableImage, match="truncated: 2 fragments of pixel data for 5 frames"):
        read_image(file)


def test_a_file_that_ends_within_compressed_pixel_data_is_truncated(make_dicom):
    file = make_dicom(GREY, syntax=JPEGBaseline8Bit, PixelData=encapsulate([jpeg(GREY)]))
    with pytest.raises(UnreadableImage, match="truncated: the file ends within an element"):
        read_image(file[:-40])


@pytest.mark.parametrize("syntax", ["jpeg_p14sv1", "j2k_lossless"])
def test_a_codestream_without_an_end_is_read_with_a_warning_or_truncated(shared_data, syntax):
    data = (shared_data / "dicom" / f"CT_ts_{syntax}.dcm").read_bytes()
    at = data.rindex(b"\xff\xd9")
    cut = data[:at] + b"\0\0" + data[at + 2 :]
    if syntax == "j2k_lossless":
        with pytest.raises(UnreadableImage, match="truncated: JPEG 2000 Image Compression"):
            read_image(cut)
        return
    assert read_image(data).description.warnings == ()
    assert read_image(cut).description.warnings == ("compressed pixel data without an end: perhaps truncated",)


def test_rle_keeps_the_stored_bits_where_the_header_says_they_are(make_dicom):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) << 4 | 0x5  # twelve bits above four others
    planes = [bytes(values.astype(">u2").tobytes()[offset::2]) for offset in (0, 1)]
    segments = [bytes([63]) + plane for plane in planes]
    frame = struct.pack("<16I", 2, 64, 64 + 65, *[0] * 13) + segments[0] + segments[1]
    elements = {"BitsStored": 12, "HighBit": 15, "WindowCenter": 32, "WindowWidth": 64}
    data = make_dicom(values, syntax=RLELossless, PixelData=encapsulate([frame]), **elements)
    np.testing.assert_allclose(read_image(data).pixels[0].ravel(), np.arange(64) / 63, atol=1e-6)


def test_a_missing_codec_is_named_with_its_install_line(monkeypatch, shared_data):
    path = shared_data / "dicom" / "CT_ts_j2k_lossless.dcm"
    assert read_image(path).pixels.shape == (1, 512, 512)
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert caught.value.kind == "codec missing"
    assert "JPEG 2000 Image Compression (Lossless Only): pip install pylibjpeg pylibjpeg-openjpeg" in str(caught.value)


def test_a_video_is_not_supported_by_name(make_dicom):
    with pytest.raises(UnreadableImage, match="not supported: transfer syntax MPEG2 Main Profile / Main Level"):
        read_image(make_dicom(GREY, syntax=MPEG2MPML, PixelData=encapsulate([b"video"])))


def test_a_codec_that_fails_is_a_refusal_without_its_words(make_dicom, capfd):
    frame = (
        b"\xff\x4f\xff\x51"
        + struct.pack(">HH8IH3B", 41, 0, 8, 8, 0, 0, 8, 8, 0, 0, 1, 7, 1, 1)
        + b"Marked^Value\xff\xd9"
    )
    with pytest.raises(UnreadableImage) as caught:
        read_image(make_dicom(GREY, syntax=JPEG2000, PixelData=encapsulate([frame])))
    assert str(caught.value).startswith("damaged: JPEG 2000 Image Compression pixel data cannot be decoded (")
    assert tuple(capfd.readouterr()) == ("", "")


@needs_the_extra
def test_everything_can_be_decoded_with_the_extra():
    assert set(decodable().values()) == {""}
    assert set(TWELVE_BITS.values()) < set(decodable())


def test_without_packages_the_list_names_them(without_the_extra, monkeypatch):
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    lacking = {name: package for name, package in decodable().items() if package}
    names = list(TWELVE_BITS.values())
    sv1 = "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])"
    assert lacking == {
        names[0]: "'grrcoca[dicom-extra]' for 12-bit samples",
        names[1]: "'grrcoca[dicom-extra]'",
        names[2]: "'grrcoca[dicom-extra]'",
        sv1: "python-gdcm",
    }
