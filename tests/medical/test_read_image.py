"""`read_image`: layouts of pixels, frames, colour, refusals, and what it keeps to itself."""

import io
import logging
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, config, dcmread, dcmwrite
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    SegmentationStorage,
    UltrasoundMultiFrameImageStorage,
)

from grrcoca_cli.errors import NotAnImage, UnreadableImage, UsageError
from medical import image as image_module
from medical.guard import GuardedReader, read_images
from medical.image import read_frames, read_image, read_pixels
from medical.monai_reader import RadiologyReader

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
WINDOW = {"WindowCenter": "128.0", "WindowWidth": "256.0"}


def refusal(source, **options) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **options)
    return caught.value


def test_path_and_bytes_give_the_same(make_dicom, tmp_path):
    data = make_dicom(GREY, **WINDOW)
    path = tmp_path / "no extension"
    path.write_bytes(data)
    image = read_image(path)
    assert image.pixels.dtype == np.float32
    assert image.description == read_image(data).description
    np.testing.assert_allclose(image.pixels[0], GREY / 255, atol=1e-6)
    assert np.array_equal(read_pixels(data), image.pixels)


def test_the_description_says_what_was_read(make_dicom):
    description = read_image(make_dicom(GREY, **WINDOW)).description
    assert (description.modality, description.rows, description.columns) == ("CT", 8, 8)
    assert (description.frames, description.frame_read) == (1, 0)
    assert description.photometric_interpretation == "MONOCHROME2"
    assert description.transfer_syntax == "Explicit VR Little Endian"
    assert description.warnings == ()


def test_a_png_is_read_by_content():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    image = read_image(buffer.getvalue())
    np.testing.assert_allclose(image.pixels[0], GREY / 255, atol=1e-6)
    assert image.description.transfer_syntax == "not DICOM"


@pytest.mark.parametrize("content", [b"# notes, not a picture\n" * 20, b"PK\x03\x04" + bytes(200)])
def test_what_is_neither_dicom_nor_picture_is_not_an_image(content):
    assert isinstance(refusal(content), NotAnImage)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    assert refusal(tmp_path / "absent.dcm").kind == "cannot be opened"


@pytest.mark.parametrize("kept_from", [128 + 4, None], ids=["file meta only", "data set only"])
def test_without_preamble_the_first_elements_decide(make_dicom, kept_from):
    data = make_dicom(GREY, **WINDOW)
    if kept_from is None:
        kept_from = 144 + int.from_bytes(data[140:144], "little")  # where the file meta ends
    image = read_image(data[kept_from:])
    np.testing.assert_allclose(image.pixels[0], GREY / 255, atol=1e-6)
    assert "no preamble: known as DICOM by its first elements" in image.description.warnings


def test_stored_bits_are_masked_and_signed(make_dicom):
    values = np.array([[-2048, -1, 0, 2047]], np.int16)
    dirty = (values.view(np.uint16) & 0x0FFF) | 0x5000  # twelve bits, something else in the upper four
    elements = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "WindowCenter": 0, "WindowWidth": 4096}
    image = read_image(make_dicom(dirty, **elements))
    np.testing.assert_allclose(image.pixels[0, 0], (values[0] + 2048) / 4095, atol=1e-6)
    high = ((values.view(np.uint16) & 0x0FFF) << 4) | 0x5  # the same, in the upper twelve
    assert np.array_equal(read_image(make_dicom(high, **(elements | {"HighBit": 15}))).pixels, image.pixels)


def test_missing_elements_are_inferred_where_the_standard_lets_one(make_dicom):
    whole = read_image(make_dicom(GREY, **WINDOW))
    missing = ("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation")
    partial = read_image(make_dicom(GREY, **WINDOW, **dict.fromkeys(missing)))
    assert np.array_equal(partial.pixels, whole.pixels)
    assert len(partial.description.warnings) == 3


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated"])
def test_without_the_size_of_pixels_it_is_refused_by_keyword(make_dicom, keyword):
    error = refusal(make_dicom(GREY, **{keyword: None}))
    assert error.kind == "missing element"
    assert keyword in str(error)


@pytest.mark.parametrize("planar", [0, 1, None])
def test_colour_of_either_planar_configuration(make_dicom, planar):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    stored = rgb.transpose(2, 0, 1) if planar else rgb
    elements = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Rows": 4, "Columns": 5}
    if planar is not None:
        elements["PlanarConfiguration"] = planar
    image = read_image(make_dicom(np.ascontiguousarray(stored), **elements))
    np.testing.assert_allclose(image.pixels, rgb.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_becomes_rgb_once_also_where_422_is_claimed_of_full_data(make_dicom, photometric):
    ybr = np.array([[[76, 85, 255], [76, 85, 255]]], np.uint8)  # red
    elements = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": photometric}
    image = read_image(make_dicom(ybr, Rows=1, Columns=2, **elements))
    np.testing.assert_allclose(image.pixels[:, 0, 0], [1, 0, 0], atol=0.01)


def test_a_palette_is_looked_up_and_scaled_by_its_real_depth(make_dicom):
    def palette(entries: bytes, count: int, bits: int) -> dict[str, object]:
        parts = {}
        for colour in ("Red", "Green", "Blue"):
            parts[f"{colour}PaletteColorLookupTableDescriptor"] = [count, 1, bits]
            parts[f"{colour}PaletteColorLookupTableData"] = entries
        return parts

    stored = np.array([[0, 1, 2, 9]], np.uint8)
    colour = {"PhotometricInterpretation": "PALETTE COLOR"}
    words = np.array([0, 32768, 65535], "<u2").tobytes()
    expected = [0, 0, 32768 / 65535, 1]  # below the first mapped value: the first; past the end: the last
    image = read_image(make_dicom(stored, **colour, **palette(words, 3, 16)))
    assert image.pixels.shape == (3, 1, 4)
    np.testing.assert_allclose(image.pixels[0, 0], expected, atol=1e-6)
    in_bytes = read_image(make_dicom(stored, **colour, **palette(bytes([0, 128, 255, 0]), 4, 8)))
    np.testing.assert_allclose(in_bytes.pixels[1, 0], [0, 0, 128 / 255, 0], atol=1e-6)
    in_words = palette(np.array([0, 128, 255], "<u2").tobytes(), 3, 8)
    np.testing.assert_allclose(
        read_image(make_dicom(stored, **colour, **in_words)).pixels[2, 0], [0, 0, 128 / 255, 1], atol=1e-6
    )


def test_the_middle_of_a_volume_the_first_of_a_cine_or_as_asked(make_dicom):
    frames = np.stack([np.full((2, 2), level, np.uint8) for level in (0, 51, 102, 153, 255)])
    volume = make_dicom(frames, NumberOfFrames=5, **WINDOW)
    assert read_image(volume).description.frame_read == 2
    assert read_image(volume).pixels[0, 0, 0] == pytest.approx(0.4)
    assert read_image(volume, frame="first").description.frame_read == 0
    assert read_image(volume, frame="4").pixels[0, 0, 0] == 1
    cine = make_dicom(frames, NumberOfFrames=5, FrameTime=33, SOPClassUID=UltrasoundMultiFrameImageStorage, **WINDOW)
    assert read_image(cine).description.frame_read == 0
    assert read_image(cine, frame="middle").description.frame_read == 2
    assert refusal(volume, frame=5).kind == "no such frame"
    with pytest.raises(UsageError, match="'last'"):
        read_image(volume, frame="last")


def test_all_frames_come_one_at_a_time(make_dicom, monkeypatch):
    frames = np.stack([np.full((2, 2), level, np.uint8) for level in (0, 51, 255)])
    volume = make_dicom(frames, NumberOfFrames=3, **WINDOW)
    before, decoded = config.settings.reading_validation_mode, []
    real = image_module.decode_frame
    monkeypatch.setattr(image_module, "decode_frame", lambda *given: decoded.append(given[2]) or real(*given))
    images = read_frames(volume)
    assert decoded == []
    first = next(images)
    assert (first.description.frame_read, first.description.frames, decoded) == (0, 3, [0])
    assert config.settings.reading_validation_mode == before  # between frames the caller's own
    rest = list(images)
    assert [image.description.frame_read for image in rest] == [1, 2]
    assert [image.pixels[0, 0, 0] for image in (first, *rest)] == pytest.approx([0, 0.2, 1])
    assert np.array_equal(rest[0].pixels, read_image(volume, frame=1).pixels)


def test_the_frames_of_a_picture_are_one_and_bad_input_is_refused_when_asked_for():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    (image,) = read_frames(buffer.getvalue(), window="lung")
    assert image.description.frames == 1
    with pytest.raises(NotAnImage):
        next(read_frames(b"# notes" * 40))
    with pytest.raises(UsageError, match="did you mean 'lung'"):
        read_frames(buffer.getvalue(), window="lungs")


def test_three_windows_of_a_picture_that_has_none_are_passed_over_with_a_warning(make_dicom):
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    rgb = make_dicom(np.zeros((4, 4, 3), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    for source, channels in ((buffer.getvalue(), 1), (rgb, 3)):
        image = read_image(source, window="lung,mediastinum,bone")
        assert image.pixels.shape[0] == channels
        assert image.description.warnings == ("the window asked for is not used: not a grey DICOM image",)
        assert read_image(source).description.warnings == ()


def test_overlays_are_not_burned_in(make_dicom):
    def with_overlay(**elements) -> bytes:
        dataset = dcmread(io.BytesIO(make_dicom(GREY.astype(np.uint16), BitsStored=8, HighBit=7, **WINDOW)))
        for keyword, vr, value in (
            (0x60000010, "US", 8),
            (0x60000011, "US", 8),
            (0x60000040, "CS", "G"),
            (0x60000050, "SS", [1, 1]),
            (0x60000100, "US", 1),
            (0x60000102, "US", 0),
            (0x60003000, "OW", b"\xff" * 8),
        ):
            dataset.add_new(keyword, vr, value)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset)
        return buffer.getvalue()

    plain = read_image(make_dicom(GREY, **WINDOW)).pixels
    np.testing.assert_allclose(read_image(with_overlay()).pixels, plain, atol=1e-6)
    in_the_pixels = (GREY.astype(np.uint16) | 0x8000).tobytes()  # as old files have it, in a bit above those stored
    np.testing.assert_allclose(read_image(with_overlay(PixelData=in_the_pixels)).pixels, plain, atol=1e-6)


def test_an_odd_length_that_was_padded_is_no_excess(make_dicom):
    image = read_image(make_dicom(GREY[:3, :3].copy(), PixelData=GREY[:3, :3].tobytes() + b"\0", **WINDOW))
    np.testing.assert_allclose(image.pixels[0], GREY[:3, :3] / 255, atol=1e-6)
    assert image.description.warnings == ()


@pytest.mark.parametrize("charset", [b"ISO_IR 999", b"nonsense  ", b"\xff\xfe\\\\GB1803"])
def test_an_odd_character_set_stops_nothing(make_dicom, charset):
    elements = {"SpecificCharacterSet": "ISO_IR 100", "WindowCenterWidthExplanation": "a"}
    data = make_dicom(GREY, **elements, **WINDOW).replace(b"ISO_IR 100", charset)
    assert charset in data
    image = read_image(data, window="a")
    np.testing.assert_allclose(image.pixels[0], GREY / 255, atol=1e-6)
    assert image.description.window.source == "window of the file by name"


def test_the_palette_of_either_width_in_segments(make_dicom):
    """Two entries as they are, three on a line, then the first segment again (PS3.3 C.7.9.2)."""
    stored = np.array([[0, 1, 2, 3, 4, 5, 6]], np.uint8)
    expected = np.array([10, 20, 30, 40, 50, 10, 20])
    for bits, codes in ((16, [0, 2, 10, 20, 1, 3, 50, 2, 1, 0, 0]), (8, [0, 2, 10, 20, 1, 3, 50, 2, 1, 0, 0, 0, 0, 0])):
        palette = {}
        for colour in ("Red", "Green", "Blue"):
            palette[f"{colour}PaletteColorLookupTableDescriptor"] = [7, 0, bits]
            words = np.array(codes, "<u2" if bits == 16 else "u1").tobytes()
            palette[f"Segmented{colour}PaletteColorLookupTableData"] = words
        image = read_image(make_dicom(stored, PhotometricInterpretation="PALETTE COLOR", **palette))
        np.testing.assert_allclose(image.pixels[1, 0] * (2**bits - 1), expected, atol=1e-2)


def test_reading_needs_neither_torch_nor_torchvision_nor_monai(make_dicom, tmp_path):
    (tmp_path / "image.dcm").write_bytes(make_dicom(GREY, **WINDOW))
    Image.fromarray(GREY).save(tmp_path / "image.png")
    code = """if True:
        import sys
        from pathlib import Path
        from medical.image import read_image
        for path in Path(sys.argv[1]).iterdir():
            assert read_image(path).pixels.shape == (1, 8, 8)
        print(*(name for name in ("torch", "torchvision", "monai", "scipy", "matplotlib") if name in sys.modules))
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


def test_pixels_that_are_not_square_are_squared(make_dicom):
    image = read_image(make_dicom(GREY, PixelSpacing=[2, 1], **WINDOW))
    assert image.pixels.shape == (1, 16, 8)
    assert image.description.rows == 8
    assert read_image(make_dicom(GREY, PixelSpacing=[0, 1], **WINDOW)).pixels.shape == (1, 8, 8)
    assert read_image(make_dicom(GREY, PixelAspectRatio=[1, 2], **WINDOW)).pixels.shape == (1, 8, 16)
    assert read_image(make_dicom(GREY, PixelSpacing=[90, 1], **WINDOW)).description.warnings == (
        "pixels far from square: left as they are",
    )


def test_truncated_pixel_data_is_refused_with_what_is_short_and_excess_is_ignored(make_dicom):
    short = refusal(make_dicom(GREY, PixelData=bytes(60)))
    assert (short.kind, str(short)) == ("truncated", "truncated: 60 bytes of pixel data, 64 expected")
    frames = refusal(make_dicom(GREY, NumberOfFrames=2**31 - 1))
    assert frames.kind == "truncated"
    assert "for 2147483647 frames" in str(frames)
    excess = read_image(make_dicom(GREY, PixelData=GREY.tobytes() + bytes(40), **WINDOW))
    assert excess.description.warnings == ("excess pixel data: ignored",)
    np.testing.assert_allclose(excess.pixels[0], GREY / 255, atol=1e-6)


def test_too_many_pixels_are_refused_before_anything_is_decoded(make_dicom):
    assert refusal(make_dicom(GREY, Rows=65535, Columns=65535)).kind == "too large"


def test_a_deflate_bomb_is_refused(make_dicom, monkeypatch):
    data = make_dicom(GREY, syntax=DeflatedExplicitVRLittleEndian, **WINDOW)
    np.testing.assert_allclose(read_image(data).pixels[0], GREY / 255, atol=1e-6)
    monkeypatch.setattr("medical.dicom.MAX_INFLATED_BYTES", 100_000)
    end_of_meta = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = data[:end_of_meta] + deflater.compress(bytes(10_000_000)) + deflater.flush()
    assert refusal(bomb).kind == "too large"


def test_deep_nesting_is_a_refusal(make_dicom):
    inner = Dataset()
    inner.RescaleSlope = 1
    start = make_dicom(GREY, **WINDOW)
    item = b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"  # VOILUTSequence, an item
    at = start.index(b"\xe0\x7f\x10\x00")
    assert refusal(start[:at] + item * 3000 + start[at:]).kind == "nested too deeply"


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [(BasicTextSRStorage, "Basic Text SR Storage"), (SegmentationStorage, "Segmentation Storage")],
)
def test_what_is_no_picture_is_refused_by_sop_class(make_dicom, sop_class, name):
    pixels = GREY if "Segmentation" in name else None
    error = refusal(make_dicom(pixels, SOPClassUID=sop_class))
    assert (error.kind, str(error)) == ("not an image", f"not an image: {name}")
    assert not isinstance(error, NotAnImage)


def test_malformed_values_neither_stop_it_nor_come_out(make_dicom, capfd, caplog):
    """A number that is none, a date that is none, a modality that is free text: all marked, none shown."""
    data = make_dicom(GREY, PatientBirthDate="19991231", StudyDescription="Marked^Value", **WINDOW)
    for good, bad in ((b"19991231", b"Marked^V"), (b"CS\x02\x00CT", b"CS\x02\x00QQ"), (b"256.0 ", b"1A^V  ")):
        assert data.count(good) == 1
        data = data.replace(good, bad)
    settings = config.settings.reading_validation_mode
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        image = read_image(data)
    assert image.description.modality == ""
    assert image.description.window.source == "percentiles: no usable window in the file"
    assert "Marked" not in repr(image.description)
    assert "1A^V" not in repr(image.description)
    assert (caught, caplog.records, tuple(capfd.readouterr())) == ([], [], ("", ""))
    assert config.settings.reading_validation_mode == settings
    assert logging.getLogger("pydicom").isEnabledFor(logging.ERROR)


def test_the_data_set_that_is_kept_holds_no_identity(make_dicom):
    from medical.dicom import parse

    assert b"Marked^Value" in make_dicom(GREY)
    assert "Marked" not in str(parse(make_dicom(GREY, InstitutionName="Marked", AccessionNumber="Marked")))


def test_a_file_is_named_by_text_path_or_content(make_dicom, tmp_path):
    data = make_dicom(GREY, **WINDOW)
    path = tmp_path / "scan.dcm"
    path.write_bytes(data)
    read = GuardedReader(read_pixels)
    for source in (str(path), path, data):
        image = read_image(source)
        for pixels in (
            next(read_frames(source)).pixels,
            read_pixels(source),
            read(source),
            next(read_images([source], workers=1)).pixels,
            RadiologyReader().get_data(RadiologyReader().read(source))[0],
        ):
            np.testing.assert_array_equal(pixels, image.pixels)
    read.close()


def test_what_is_no_file_is_refused_in_words():
    for reader in (read_image, read_frames, read_pixels, GuardedReader(read_pixels)):
        with pytest.raises(UsageError, match="an image is given as a path or as the bytes of a file, not as int"):
            reader(7)
    for single in ("scan.dcm", Path("scan.dcm"), b"DICM"):
        with pytest.raises(UsageError, match="give a list of images"):
            read_images(single)


def test_an_image_prints_as_one_short_line_without_its_pixels(make_dicom):
    image = read_image(make_dicom(GREY, **WINDOW))
    assert repr(image).startswith(f"RadiologyImage({image.pixels.shape}")
    assert len(repr(image)) < 160
    assert "array" not in repr(image)


def test_an_image_that_cannot_be_read_is_named_with_its_file(make_dicom, tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(make_dicom(GREY, **WINDOW))
    (tmp_path / "other.dcm").write_bytes(b"no image")
    sources = [str(path), tmp_path / "missing.dcm", str(tmp_path / "other.dcm"), path.read_bytes(), b"no image"]
    first, missing, other, again, nameless = read_images(sources)
    assert str(missing) == f"{tmp_path / 'missing.dcm'}: cannot be opened: No such file or directory"
    assert str(other).startswith(f"{tmp_path / 'other.dcm'}: not an image")
    assert str(nameless).startswith("image 4: not an image")
    assert repr(first) == repr(again)
