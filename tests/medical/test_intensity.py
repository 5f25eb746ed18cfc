"""Modality transform, windows, LUTs, padding, inversion: each against numbers worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from grrcoca_cli.errors import UsageError
from medical.image import RadiologyImage, read_image
from medical.intensity import apply_window
from medical.windows import CT_PRESETS, parse_windows

Read = Callable[..., RadiologyImage]

RAMP = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)


@pytest.fixture
def read(make_dicom) -> Read:
    """Writes pixels with elements and reads them back."""

    def write_and_read(pixels: np.ndarray, *, frame=0, window=None, **elements) -> RadiologyImage:
        return read_image(make_dicom(pixels, **elements), frame=frame, window=window)

    return write_and_read


def lut_item(entries: list[int], first: int, bits: int = 16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


@pytest.mark.parametrize(
    ("function", "center", "width", "value", "expected"),
    [
        ("LINEAR", 40, 400, 39.5, 0.5),
        ("LINEAR", 40, 400, -160, 0.0),
        ("LINEAR", 40, 400, 239, 1.0),
        ("LINEAR", 40, 400, 139.25, 0.75),
        ("LINEAR_EXACT", 40, 400, 40, 0.5),
        ("LINEAR_EXACT", 40, 400, 240, 1.0),
        ("SIGMOID", 40, 400, 40, 0.5),
        ("SIGMOID", 40, 400, 140, 1 / (1 + np.exp(-1))),
        ("LINEAR", 40, 1, 39.5, 0.0),
        ("LINEAR", 40, 1, 39.6, 1.0),
        ("LINEAR", 0.5, 0.5, 0.625, 0.75),
        ("NONSENSE", 40, 400, 39.5, 0.5),
    ],
)
def test_window_functions_follow_the_standard(function, center, width, value, expected):
    assert apply_window(np.array([[value]]), center, width, function)[0, 0] == pytest.approx(expected)


@given(
    center=st.floats(-2000, 4000),
    width=st.floats(0.01, 8000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_a_window_never_leaves_the_unit_range_nor_reverses_the_order(center, width, function):
    levels = apply_window(RAMP.astype(np.float32), center, width, function).ravel()
    assert levels.min() >= 0
    assert levels.max() <= 1
    assert (np.diff(levels) >= 0).all()


def test_rescale_comes_before_the_window(read):
    image = read(
        (RAMP + 1024).astype(np.uint16), RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    hounsfield = (RAMP + 1024) * 2.0 - 1024
    np.testing.assert_allclose(image.pixels[0], np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1), atol=1e-6)
    assert str(image.description.window) == "first window of the file (centre 40, width 400)"


@pytest.mark.parametrize("elements", [{"RescaleIntercept": -10}, {"RescaleSlope": 0, "RescaleIntercept": -10}])
def test_a_slope_that_is_missing_or_zero_counts_as_one(read, elements):
    given_slope = read(RAMP, RescaleSlope=1, RescaleIntercept=-10, WindowCenter=0, WindowWidth=500)
    assert np.array_equal(read(RAMP, WindowCenter=0, WindowWidth=500, **elements).pixels, given_slope.pixels)


def test_an_empty_modality_lut_is_passed_over_and_a_full_one_wins_over_the_slope(read):
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    window = {"WindowCenter": 50.5, "WindowWidth": 101}
    empty = read(stored, ModalityLUTSequence=[Dataset()], RescaleSlope=10, RescaleIntercept=0, **window)
    np.testing.assert_allclose(empty.pixels[0, 0], [0, 0.1, 0.2, 0.3], atol=1e-6)
    table = lut_item([100, 50, 0], first=1, bits=8)
    full = read(stored, ModalityLUTSequence=[table], RescaleSlope=10, RescaleIntercept=0, **window)
    np.testing.assert_allclose(full.pixels[0, 0], [1, 1, 0.5, 0], atol=1e-6)  # below the first mapped value: the first


def test_a_voi_lut_is_preferred_to_a_window_and_an_index_chooses_the_window(read):
    elements = {"VOILUTSequence": [lut_item([0, 1023, 4095], first=0, bits=12)], "WindowCenter": 1, "WindowWidth": 4}
    stored = np.array([[0, 1, 2, 9]], np.uint8)
    by_lut = read(stored, **elements)
    np.testing.assert_allclose(by_lut.pixels[0, 0], [0, 1023 / 4095, 1, 1], atol=1e-6)
    assert by_lut.description.window.source == "VOI LUT of the file"
    assert read(stored, window="0", **elements).description.window.width == 4


def test_the_first_of_several_windows_is_taken_and_one_without_width_passed_over(read):
    assert read(RAMP, WindowCenter=[40, -600], WindowWidth=[400, 1500]).description.window.center == 40
    second = read(RAMP, WindowCenter=[40, -600], WindowWidth=[400, 1500], window="1")
    assert second.description.window.width == 1500
    assert read(RAMP, WindowCenter=[40, -600], WindowWidth=[0, 1500]).description.window.width == 1500


def test_an_index_the_file_lacks_gives_way_to_the_first_with_a_warning(read):
    image = read(RAMP, WindowCenter=40, WindowWidth=400, window="3")
    assert image.description.window.center == 40
    assert image.description.warnings == ("the file has no window with the index asked for",)


@pytest.mark.parametrize(
    "elements", [{}, {"WindowCenter": 40, "WindowWidth": 0}, {"WindowCenter": 9000, "WindowWidth": 100}]
)
def test_without_a_usable_window_the_percentiles_hold_and_say_so(read, elements):
    image = read(RAMP, **elements)
    low, high = np.percentile(RAMP, [0.5, 99.5])
    np.testing.assert_allclose(image.pixels[0], np.clip((RAMP - low) / (high - low), 0, 1), atol=1e-6)
    assert image.description.window.source == "percentiles: no usable window in the file"


def test_a_preset_is_for_ct_alone(read):
    lung = read(RAMP, window="lung", WindowCenter=40, WindowWidth=400)
    assert (lung.description.window.center, lung.description.window.width) == CT_PRESETS["lung"]
    mr = read(RAMP, window="lung", WindowCenter=40, WindowWidth=400, Modality="MR")
    assert mr.description.window.center == 40
    assert mr.description.warnings == ("the CT preset was not used: not a CT",)


def test_center_and_width_as_asked_win_over_the_file(read):
    image = read(RAMP, window="-600/1500", WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(image.pixels[0], apply_window(RAMP.astype(np.float32), -600, 1500))


@pytest.mark.parametrize(
    "text",
    ["", "lungs", "40/0", "40/-4", "nan/3", "1e3/2", "-1", "40,400", "lung,bone", "lung,,bone", "name:", "1,2,3,4"],
)
def test_a_window_that_is_no_window_is_a_usage_error(text):
    with pytest.raises(UsageError, match="centre/width"):
        parse_windows(text)


@pytest.mark.parametrize("text", ["soft tissue", "SOFT_TISSUE", " soft-tissue "])
def test_a_preset_may_be_written_in_several_ways(text):
    assert parse_windows(text)[0].preset == "soft-tissue"


NAMED = {
    "WindowCenter": [40, -600, 300],
    "WindowWidth": [400, 1500, 1500],
    "WindowCenterWidthExplanation": ["WINDOW1", "Lungs  Sharp", "BRAIN"],
}


@pytest.mark.parametrize(
    ("window", "center", "source"),
    [
        ("window1", 40, "window of the file by name"),
        ("lungs sharp", -600, "window of the file by name"),
        ("name:LUNGS SHARP", -600, "window of the file by name"),
        ("name:brain", 300, "window of the file by name"),
        ("brain", 40, "CT preset brain"),  # a recipe's preset means one window in every file
        ("auto", 40, "first window of the file"),
        (None, 40, "first window of the file"),
        ("2", 300, "window of the file by index"),
    ],
)
def test_a_window_of_the_file_by_its_name_and_a_preset_before_it(read, window, center, source):
    used = read(RAMP, window=window, **NAMED).description.window
    assert (used.center, used.source) == (center, source)


def test_a_name_the_file_lacks_gives_way_to_the_first_and_no_name_is_shown(read):
    image = read(RAMP, window="coronary", **NAMED)
    assert image.description.window.center == 40
    assert image.description.warnings == ("the file has no window with the name asked for",)
    assert "sharp" not in repr(read(RAMP, window="lungs sharp", **NAMED).description).lower()
    unnamed = read(RAMP, window="coronary", WindowCenter=40, WindowWidth=400)
    assert unnamed.description.warnings == image.description.warnings


def test_an_index_counts_windows_as_the_file_does_and_passes_over_a_useless_one(read):
    elements = {"WindowCenter": [40, 10, -600], "WindowWidth": [400, 0, 1500]}
    assert read(RAMP, window="2", **elements).description.window.center == -600
    useless = read(RAMP, window="1", **elements)
    assert useless.description.window.center == 40
    assert useless.description.warnings == ("the file has no window with the index asked for",)


def test_three_windows_make_three_channels(read):
    image = read(RAMP, window="lung, mediastinum,40/400")
    assert image.pixels.shape == (3, 32, 64)
    for channel, window in zip(image.pixels, ("lung", "mediastinum", "40/400"), strict=True):
        assert np.array_equal(channel, read(RAMP, window=window).pixels[0])
    assert str(image.description.window) == (
        "CT preset lung (centre -600, width 1500); CT preset mediastinum (centre 50, width 350); "
        "as asked (centre 40, width 400)"
    )


def test_three_windows_of_another_modality_warn_once(read):
    image = read(RAMP, window="lung,mediastinum,bone", Modality="MR", WindowCenter=40, WindowWidth=400)
    assert image.pixels.shape == (3, 32, 64)
    assert image.description.warnings == ("the CT preset was not used: not a CT",)


def test_three_windows_invert_and_keep_padding_black_each(read):
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": -1024}
    image = read(RAMP, window="0/100,0/1000,0/4000", **inverted)
    assert (image.pixels[:, 0, 0] == 0).all()
    for channel, width in zip(image.pixels, (100, 1000, 4000), strict=True):
        np.testing.assert_array_equal(channel.ravel()[1:], 1 - apply_window(RAMP.ravel()[1:] * np.float32(1), 0, width))


@pytest.mark.parametrize("function", ["", "SIGMOID", "LINEAR_EXACT", "SOMETHING"])
def test_the_function_of_the_file_holds_and_an_empty_or_unknown_one_is_linear(read, function):
    image = read(RAMP, WindowCenter=40, WindowWidth=400, VOILUTFunction=function)
    expected = apply_window(RAMP.astype(np.float32), 40, 400, function if "_" in function or function else "LINEAR")
    np.testing.assert_array_equal(image.pixels[0], expected)


def test_a_width_below_one_is_linear_exact(read):
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    image = read(stored, RescaleSlope="0.1", RescaleIntercept=0, WindowCenter="0.15", WindowWidth="0.3")
    np.testing.assert_allclose(image.pixels[0, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)


def test_a_useless_voi_lut_and_window_give_way_to_percentiles(read):
    flat = {"VOILUTSequence": [lut_item([7, 7, 7], first=0)]}
    image = read(RAMP, **flat)
    assert image.description.window.source == "percentiles: no usable window in the file"
    assert image.description.warnings == ("the window of the file shows one grey level: not used",)
    empty = read(RAMP, VOILUTSequence=[Dataset()], WindowCenter=40, WindowWidth=400)
    assert empty.description.window.center == 40


def test_of_several_voi_luts_the_index_chooses_where_there_is_no_window(read):
    stored = np.array([[0, 1, 2]], np.uint8)
    luts = [lut_item([0, 50, 100], first=0, bits=8), lut_item([0, 100, 255], first=0, bits=8)]
    np.testing.assert_allclose(read(stored, VOILUTSequence=luts).pixels[0, 0] * 255, [0, 50, 100], atol=1e-4)
    second = read(stored, VOILUTSequence=luts, window="1")
    np.testing.assert_allclose(second.pixels[0, 0] * 255, [0, 100, 255], atol=1e-4)


def test_a_voi_lut_of_a_functional_group(read):
    voi, group = Dataset(), Dataset()
    voi.VOILUTSequence = [lut_item([0, 100, 255], first=0, bits=8)]
    group.FrameVOILUTSequence = [voi]
    image = read(np.array([[0, 1, 2]], np.uint8), SharedFunctionalGroupsSequence=[group])
    np.testing.assert_allclose(image.pixels[0, 0] * 255, [0, 100, 255], atol=1e-4)


def test_a_lut_of_8_bit_entries_stored_in_words_either_way(read):
    """Two to a word as the standard has it, or one to a word as many files have it; as words (OW) or numbers (US)."""
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    for data in (bytes([0, 50, 100, 255]), np.array([0, 50, 100, 255], "<u2").tobytes()):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4, 0, 8])
        item.add_new("LUTData", "OW", data)
        np.testing.assert_allclose(read(stored, VOILUTSequence=[item]).pixels[0, 0] * 255, [0, 50, 100, 255], atol=1e-4)


def test_a_near_miss_names_the_preset_that_was_meant():
    with pytest.raises(UsageError, match="did you mean 'lung'"):
        parse_windows("lungs")


def test_monochrome1_is_the_inverse_of_monochrome2(read):
    window = {"WindowCenter": 0, "WindowWidth": 1000}
    bright = read(RAMP, **window).pixels
    dark = read(RAMP, PhotometricInterpretation="MONOCHROME1", **window).pixels
    assert np.array_equal(dark, 1 - bright)


def test_inverse_shape_and_monochrome1_together_invert_once(read):
    once = read(RAMP, PhotometricInterpretation="MONOCHROME1", WindowCenter=0, WindowWidth=1000)
    shape = {"PresentationLUTShape": "INVERSE"}
    both = read(RAMP, PhotometricInterpretation="MONOCHROME1", WindowCenter=0, WindowWidth=1000, **shape)
    shape_alone = read(RAMP, WindowCenter=0, WindowWidth=1000, **shape)
    assert np.array_equal(once.pixels, both.pixels)
    assert np.array_equal(once.pixels, shape_alone.pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_left_out_of_percentiles(read, photometric):
    stored = RAMP.clip(0, 900)
    stored[:8] = -2000
    stored[8:12] = -1990
    # pydicom writes the padding value unsigned where it does not know better: 63536 is -2000
    image = read(stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1985, PhotometricInterpretation=photometric)
    assert (image.pixels[0, :12] == 0).all()
    low, high = np.percentile(stored[12:], [0.5, 99.5])
    shown = np.clip((stored[12:] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image.pixels[0, 12:], shown if photometric == "MONOCHROME2" else 1 - shown, atol=1e-5)


def test_padding_of_float_pixels_and_what_is_no_number(make_dicom):
    stored = np.linspace(-1, 3, 64, dtype=np.float32).reshape(8, 8)
    stored[0, :3] = np.nan, np.inf, -99
    data = make_dicom(stored, PixelData=None, FloatPixelData=stored.tobytes(), FloatPixelPaddingValue=-99.0)
    image = read_image(data, window="1/4")
    assert (image.pixels[0, 0, :3] == 0).all()
    np.testing.assert_allclose(image.pixels[0, 1:], np.clip((stored[1:] - 0.5) / 3 + 0.5, 0, 1), atol=1e-6)


def test_padding_of_unsigned_pixels_that_was_written_as_a_negative_number(make_dicom):
    stored = np.arange(65536 - 64, 65536, dtype=np.uint16).reshape(8, 8)
    data = make_dicom(stored, PixelPaddingValue=65535, WindowCenter=65504, WindowWidth=64)
    at = data.index(b"\x28\x00\x20\x01US")
    signed = data[: at + 4] + b"SS" + data[at + 6 :]
    for file in (data, signed):
        assert read_image(file).pixels[0, 7, 6:].tolist() == [pytest.approx(62.5 / 63, abs=0.01), 0]


def test_an_image_of_padding_alone_is_still_read(read):
    image = read(np.zeros((4, 4), np.uint8), PixelPaddingValue=0)
    assert image.pixels.shape == (1, 4, 4)
    assert image.description.warnings == ("all pixels are equal",)


def test_functional_groups_give_each_frame_its_rescale_and_window(read):
    def group(slope: float, center: float) -> Dataset:
        rescale, voi, frame = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
        voi.WindowCenter, voi.WindowWidth = center, 101
        frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [rescale], [voi]
        return frame

    stored = np.full((2, 1, 3), [0, 10, 20], np.uint16)
    elements = {
        "NumberOfFrames": 2,
        "PerFrameFunctionalGroupsSequence": [group(1, 50.5), group(2, 50.5)],
        "WindowCenter": 7,
        "WindowWidth": 7,
    }
    np.testing.assert_allclose(read(stored, frame=0, **elements).pixels[0, 0], [0, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(read(stored, frame=1, **elements).pixels[0, 0], [0, 0.2, 0.4], atol=1e-6)
    shared = {"NumberOfFrames": 2, "SharedFunctionalGroupsSequence": [group(3, 50.5)]}
    np.testing.assert_allclose(read(stored, frame=1, **shared).pixels[0, 0], [0, 0.3, 0.6], atol=1e-6)
