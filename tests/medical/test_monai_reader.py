"""`RadiologyReader` inside MONAI's loaders. One file: MONAI takes seconds to import."""

import warnings

import numpy as np
import pytest

from grrcoca_cli.errors import UnreadableImage
from medical.image import read_image

RADIOGRAPH = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100
DESCRIBED = {
    "modality", "rows", "columns", "frames", "frame_read", "photometric_interpretation", "transfer_syntax", "window",
    "warnings",
}  # fmt: skip
MONAIS_OWN = {"original_channel_dim", "spatial_shape", "filename_or_obj", "space", "affine", "original_affine"}


@pytest.fixture
def path(make_dicom, tmp_path):
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR", "WindowCenter": 600, "WindowWidth": 900}
    file = tmp_path / "no-extension"
    file.write_bytes(make_dicom(RADIOGRAPH, InstitutionName="Marked", **inverted))
    return file


# Of MONAI's other readers, when a loader is made; `load_radiology` is the quiet way
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec:UserWarning")


@pytest.mark.parametrize("channel_first", [False, True])
def test_load_image_gives_the_pixels_of_read_image(path, channel_first):
    from monai.transforms import LoadImage

    from medical import RadiologyReader

    image = LoadImage(reader=RadiologyReader(window="500/1000"), ensure_channel_first=channel_first)(path)
    assert image.shape == (1, 3, 4)
    assert np.array_equal(image.numpy(), read_image(path, window="500/1000").pixels)
    assert image.meta["window"] == "as asked (centre 500, width 1000)"
    assert set(image.meta) <= DESCRIBED | MONAIS_OWN
    assert set(image.meta) > DESCRIBED
    assert "Marked" not in str(image.meta)


def test_load_imaged_in_a_compose_with_the_class_and_its_arguments(path):
    from monai.transforms import Compose, LoadImaged, Resized

    from medical import RadiologyReader

    loaded = LoadImaged(keys="image", reader=RadiologyReader())({"image": path})["image"]
    assert np.array_equal(loaded.numpy(), read_image(path).pixels)
    chain = Compose([LoadImaged("image", reader=RadiologyReader, window="0"), Resized("image", spatial_size=(6, 8))])
    assert chain({"image": str(path)})["image"].shape == (1, 6, 8)


def test_load_radiology_is_quiet_and_has_no_other_reader(path, tmp_path, caplog):
    from medical.monai_reader import RadiologyReader, load_radiology

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = load_radiology(["image", "prior"], window="0")
        loaded = loader({"image": path, "prior": path})
    assert caplog.records == []
    assert np.array_equal(loaded["prior"].numpy(), read_image(path).pixels)
    assert [type(reader) for reader in loader._loader.readers] == [RadiologyReader]


def test_several_files_become_channels(path):
    from monai.transforms import LoadImage

    from medical import RadiologyReader

    image = LoadImage(reader=RadiologyReader())([path, path])
    assert image.shape == (2, 3, 4)
    assert np.array_equal(image[0].numpy(), image[1].numpy())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bad_file_is_our_refusal_and_not_what_another_reader_makes_of_it(make_dicom, tmp_path):
    """MONAI's own PydicomReader would give pixels of this one: a report's SOP class over an image."""
    from monai.transforms import LoadImage, LoadImaged
    from pydicom.uid import SegmentationStorage

    from medical import RadiologyReader

    path = tmp_path / "report.dcm"
    path.write_bytes(make_dicom(RADIOGRAPH, SOPClassUID=SegmentationStorage))
    assert LoadImage()(path).numel() == RADIOGRAPH.size
    with pytest.raises(UnreadableImage, match="not an image: Segmentation Storage"):
        LoadImage(reader=RadiologyReader())(path)
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        LoadImaged("image", reader=RadiologyReader())({"image": tmp_path / "absent.dcm"})


def test_any_file_that_is_there_is_ours(path, tmp_path):
    from medical import RadiologyReader

    reader = RadiologyReader()
    assert reader.verify_suffix(path)
    assert reader.verify_suffix([str(path), path])
    assert not reader.verify_suffix([path, tmp_path / "absent"])
