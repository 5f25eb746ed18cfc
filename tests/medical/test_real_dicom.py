"""Real files: those inside pydicom and pydicom-data, and ../shared/data/dicom; known figures, and a sweep over all."""

import logging
import shutil
import sys
import warnings
from collections import Counter
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from grrcoca_cli.errors import UnreadableImage
from medical import decoding
from medical.dicom import HEAD_BYTES, is_dicom
from medical.image import RadiologyImage, read_image


def package_folder(name: str, inner: str) -> Path | None:
    """A folder of an installed package, found without `pydicom.data`, which may download."""
    spec = find_spec(name)
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


@pytest.mark.parametrize(
    ("native", "twin"),
    [
        ("RG1_UNCR", "RG1_J2KR"),
        ("RG3_UNCR", "RG3_J2KR"),
        ("MR2_UNCR", "MR2_J2KR"),
        ("693_UNCR", "693_J2KR"),
        ("emri_small", "emri_small_jpeg_2k_lossless"),
        ("emri_small", "emri_small_RLE"),
        ("emri_small", "emri_small_jpeg_ls_lossless"),
        ("emri_small", "emri_small_big_endian"),
        ("OBXXXX1A", "OBXXXX1A_rle"),
        ("gdcm-US-ALOKA-16", "gdcm-US-ALOKA-16_big"),
        ("SC_rgb_32bit", "SC_rgb_expb_32bit"),
    ],
)
def test_a_lossless_or_big_endian_twin_is_equal(native, twin):
    assert np.array_equal(read(f"{native}.dcm", frame="first").pixels, read(f"{twin}.dcm", frame="first").pixels)


def test_a_head_ct_keeps_the_grey_levels_of_the_brain():
    image = read("693_UNCR.dcm")
    assert image.pixels[0, 0, 0] == 0
    assert image.pixels.mean() == pytest.approx(0.157, abs=0.0005)
    assert len(np.unique(read("693_UNCR.dcm", window="40/80").pixels)) >= 70


def test_an_enhanced_ct_is_windowed_by_its_functional_groups():
    """Its values run from -1024 to 172 HU, its shared group's window is 49/102; the mean is of the windowed picture."""
    image = read("eCT_Supplemental.dcm", frame=0)
    assert image.pixels.mean() == pytest.approx(0.154, abs=0.0005)
    assert (image.description.window.center, image.description.window.width) == (49, 102)
    assert image.description.frames == 2
    stretched = read("eCT_Supplemental.dcm", frame=0, window="-425.5/1197").pixels  # -1024 is 0, 172 is 1
    assert (stretched.min(), stretched.max()) == (0, 1)
    assert ((stretched > 0) & (stretched < 1)).mean() > 0.4  # the rescale holds: nothing else of the range is clipped


def test_a_segmented_palette_is_what_pydicom_makes_of_it():
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut

    dataset = dcmread(pydicom_data("gdcm-US-ALOKA-16.dcm"))
    expected = apply_color_lut(dataset.pixel_array, dataset).transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(read("gdcm-US-ALOKA-16.dcm").pixels, expected, atol=1.01 / 65535)


def test_a_palette_of_either_byte_order():
    image = read("OBXXXX1A.dcm")
    np.testing.assert_allclose(image.pixels[:, 0, 0], [0.145, 0.242, 0.367], atol=0.0005)
    assert np.array_equal(image.pixels, read("OBXXXX1A_expb.dcm").pixels)


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
        "pictures", "not an image", "no pixel data", "missing element", "codec missing", "truncated", "damaged"
    }  # fmt: skip
    assert counts["damaged"] <= 1  # a JPEG 2000 stream that pydicom broke on purpose


def test_every_file_of_pydicom_data_gives_pixels_or_one_refusal(silence):
    counts = sweep(pydicom_data("."))
    assert counts == {"pictures": 65, "not an image": 2, "truncated": 1}


def test_every_shared_file_gives_pixels_or_one_refusal(shared_data, silence):
    counts = sweep(shared_data / "dicom")
    by_the_extra = {"codec missing": 6} if find_spec("imagecodecs") is None else {"pictures": 6}
    assert counts == Counter({"pictures": 38, "not an image": 6, "missing element": 1}) + Counter(by_the_extra)


FRAMES_WITHOUT_PIXELS = {"not an image", "no pixel data"}


@pytest.mark.skipif(find_spec("imagecodecs") is None, reason="imagecodecs is not installed")
def test_nearly_all_files_with_pixels_are_decoded_with_the_extra_and_without(shared_data, monkeypatch):
    """Every file once without the extra, and again with it where only a codec was missing."""
    folders = [folder for folder in (PYDICOM_FILES, PYDICOM_DATA_FILES, shared_data / "dicom") if folder is not None]
    assert len(folders) == 3
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    kinds, waiting = Counter(), []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file() and is_dicom_file(path)):
        try:
            read_image(path)
            kinds["pictures"] += 1
        except UnreadableImage as error:
            kinds[error.kind] += 1
            waiting += [path] if error.kind == "codec missing" else []
    monkeypatch.undo()
    with_pixels = kinds.total() - sum(kinds[kind] for kind in FRAMES_WITHOUT_PIXELS)
    assert with_pixels > 200
    assert kinds["pictures"] / with_pixels >= 0.92
    assert (kinds["pictures"] + sum(read_image(path).pixels.size > 0 for path in waiting)) / with_pixels >= 0.96


def is_dicom_file(path: Path) -> bool:
    return is_dicom(path.read_bytes()[:HEAD_BYTES])


@pytest.fixture(scope="module")
def sweep_command():
    """`tests/benchmarks/dicom_sweep.py` as a module."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "dicom_sweep.py"
    spec = spec_from_file_location("dicom_sweep", path)
    module = sys.modules[spec.name] = module_from_spec(spec)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.dcmtk
@pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="DCMTK's dcmj2pnm is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "CT_small",  # rescale and percentiles
        "mlut_18",  # a modality LUT
        "vlut_04",  # a VOI LUT
        "examples_palette",
        "SC_ybr_full_422_uncompressed",
        "SC_rgb_rle_2frame",
        "MR_small_RLE",
        "emri_small_big_endian",  # many frames
        "SC_rgb_jpeg_dcmtk",
        "examples_overlay",
    ],
)
def test_dcmtk_renders_the_same_picture(sweep_command, name):
    assert PYDICOM_FILES is not None
    path = next(path for folder in (PYDICOM_FILES, pydicom_data(".")) for path in folder.rglob(f"{name}.dcm"))
    difference, why = sweep_command.compare(path, read_image(path))
    assert why == ""
    assert difference < 0.01


def test_the_sweep_command_tells_what_became_of_each_file(sweep_command, shared_data, capsys, monkeypatch):
    monkeypatch.setattr(sweep_command, "dicom_files", lambda folders: sorted(folders[0].glob("*_no_*.dcm")))
    outcomes = [sweep_command.read(path) for path in sweep_command.dicom_files([shared_data / "dicom"])]
    assert sweep_command.report(outcomes, show_all=True)
    said = capsys.readouterr().out
    assert "3 distinct DICOM files, 1 with pixels to look at" in said
    assert "missing element: Rows in a DICOM object of unknown SOP class  [BAD_no_rows.dcm]" in said
