"""Real files: those inside pydicom and pydicom-data, and ../shared/data/dicom; known figures, and a sweep over all."""

import importlib.util
import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom.pixels.decoders import JPEG2000LosslessDecoder

from grrcoca_cli.errors import UnreadableImage
from medical.image import RadiologyImage, read_image


def package_folder(name: str, inner: str) -> Path | None:
    """A folder of an installed package, found without `pydicom.data`, which may download."""
    spec = importlib.util.find_spec(name)
    return (
        None if spec is None or not spec.submodule_search_locations else Path(spec.submodule_search_locations[0], inner)
    )


PYDICOM_FILES = package_folder("pydicom", "data")
PYDICOM_DATA_FILES = package_folder("data_store", "data")


def pydicom_data(name: str) -> Path:
    if PYDICOM_DATA_FILES is None:
        pytest.skip("the package pydicom-data is not installed")
    return PYDICOM_DATA_FILES / name


def read(name: str, **options) -> RadiologyImage:
    return read_image(pydicom_data(name), **options)


def test_a_radiograph_of_monochrome1_is_inverted():
    image = read("RG1_UNCR.dcm")
    assert image.pixels.shape == (1, 1955, 1841)
    assert image.pixels.mean() == pytest.approx(0.754, abs=0.0005)
    assert image.pixels[0, 0, 0] == pytest.approx(0.370, abs=0.0005)


def test_its_jpeg_2000_twin_is_equal():
    assert np.array_equal(read("RG1_UNCR.dcm").pixels, read("RG1_J2KR.dcm").pixels)


def test_a_head_ct_keeps_the_grey_levels_of_the_brain():
    image = read("693_UNCR.dcm")
    assert image.pixels[0, 0, 0] == 0
    assert image.pixels.mean() == pytest.approx(0.157, abs=0.0005)
    assert len(np.unique(read("693_UNCR.dcm", window="40/80").pixels)) >= 70


def test_an_enhanced_ct_is_windowed_by_its_functional_groups():
    image = read("eCT_Supplemental.dcm", frame=0)
    assert image.pixels.mean() == pytest.approx(0.154, abs=0.0005)
    assert image.description.frames == 2


def test_a_palette_of_either_byte_order():
    image = read("OBXXXX1A.dcm")
    np.testing.assert_allclose(image.pixels[:, 0, 0], [0.145, 0.242, 0.367], atol=0.0005)
    assert np.array_equal(image.pixels, read("OBXXXX1A_expb.dcm").pixels)


LOSSLESS = ["deflated", "explicit_be", "j2k_lossless", "jpeg_p14", "jpeg_p14sv1", "jpegls", "rle"]
LOSSY = {"j2k_lossy": 5.01, "jpegls_near": 1.01, "jpeg_p1_8bit": 64.3}  # HU, from the folder's SOURCE.md
UNSUPPORTED = {
    "jpeg_p2_4_12bit": "JPEG Extended",
    "jpeg_p6_8_retired": "Spectral Selection",
    "jpeg_p10_12_retired": "Full Progression",
}
WIDE = "0/8001"


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> np.ndarray:
    return read_image(shared_data / "dicom" / "CT_ts_implicit_le.dcm", window=WIDE).pixels


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_one_slice_in_lossless_syntaxes_is_equal_to_the_last_bit(shared_data, reference, syntax):
    assert np.array_equal(read_image(shared_data / "dicom" / f"CT_ts_{syntax}.dcm", window=WIDE).pixels, reference)


@pytest.mark.parametrize("syntax", LOSSY)
def test_and_in_lossy_ones_within_what_they_lose(shared_data, reference, syntax):
    pixels = read_image(shared_data / "dicom" / f"CT_ts_{syntax}.dcm", window=WIDE).pixels
    difference = np.abs(pixels - reference).max() * 8000
    assert 0 < difference <= LOSSY[syntax]


@pytest.mark.parametrize("syntax", UNSUPPORTED)
def test_and_refused_by_name_where_no_codec_reads_it(shared_data, syntax):
    with pytest.raises(UnreadableImage, match=UNSUPPORTED[syntax]) as caught:
        read_image(shared_data / "dicom" / f"CT_ts_{syntax}.dcm")
    assert caught.value.kind == "not supported"


def test_a_missing_codec_is_named_with_its_install_line(monkeypatch):
    assert PYDICOM_FILES is not None
    path = PYDICOM_FILES / "test_files" / "MR_small_jp2klossless.dcm"
    assert read_image(path).pixels.shape == (1, 64, 64)
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert caught.value.kind == "codec missing"
    assert "JPEG 2000 Image Compression (Lossless Only): pip install pylibjpeg pylibjpeg-openjpeg" in str(caught.value)


def sweep(folder: Path) -> Counter[str]:
    """Read every file below a folder; the count of pictures and of refusals by kind."""
    counts: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".py", ".pyc"):
            continue
        try:
            pixels = read_image(path).pixels
        except UnreadableImage as error:
            counts[error.kind] += 1
            continue
        counts["pictures"] += 1
        assert pixels.dtype == np.float32, path.name
        assert pixels.shape[0] in (1, 3), path.name
        assert np.isfinite(pixels).all(), path.name
        assert pixels.min() >= 0, path.name
        assert pixels.max() <= 1, path.name
    return counts


@pytest.fixture
def silence(capfd, caplog):
    """Fails the test if anything was printed (by C code either), logged or warned."""
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        yield
    assert [str(warning.message) for warning in caught] == []
    assert [record.name for record in caplog.records] == []
    assert tuple(capfd.readouterr()) == ("", "")


def test_every_file_inside_pydicom_gives_pixels_or_one_refusal(silence):
    assert PYDICOM_FILES is not None
    counts = sweep(PYDICOM_FILES)
    assert counts["pictures"] >= 90
    assert set(counts) <= {
        "pictures", "not an image", "no pixel data", "missing element", "not supported", "truncated", "damaged"
    }  # fmt: skip
    assert counts["damaged"] <= 1  # a JPEG 2000 stream that pydicom broke on purpose


def test_every_file_of_pydicom_data_gives_pixels_or_one_refusal(silence):
    counts = sweep(pydicom_data("."))
    assert counts == {"pictures": 65, "not an image": 2, "no pixel data": 1}


def test_every_shared_file_gives_pixels_or_one_refusal(shared_data, silence):
    counts = sweep(shared_data / "dicom")
    assert counts == {"pictures": 38, "not supported": 6, "not an image": 6, "missing element": 1}
