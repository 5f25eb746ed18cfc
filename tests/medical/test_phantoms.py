"""The phantoms: true captions, real DICOM, the radiological convention, the same bytes in every run."""

import csv
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_windowing

from medical import phantoms
from medical.image import read_image
from medical.phantom_files import COLUMNS, to_dicom, write_dicom_set, write_shards
from medical.phantoms import PROTOCOLS, SHAPES, SIDES, SIZES, Lesion, Phantom, Style, attribute_accuracy, draw

STYLES: tuple[Style, ...] = ("plain", "report")


def all_phantoms() -> list[Phantom]:
    found: list[Phantom] = []
    for protocol in PROTOCOLS:
        words = itertools.product(SIZES, SHAPES, protocol.densities, SIDES, protocol.zones)
        found += [Phantom(protocol, None), *(Phantom(protocol, Lesion(*word, diameter_mm=20.0)) for word in words)]
    return found


def lesion_alone(monkeypatch: pytest.MonkeyPatch, index: int) -> tuple[Phantom, NDArray[np.float64]]:
    """A study, and how much its lesion changes each pixel of the display (H, W)."""
    study = draw(3, index)

    def place_but_hide(canvas: phantoms.anatomy.Canvas, protocol: phantoms.Protocol) -> Lesion:
        image = canvas.image.copy()
        lesion = place(canvas, protocol)
        canvas.image[:] = image
        return lesion

    place = phantoms._place_lesion
    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "_place_lesion", place_but_hide)
        without = draw(3, index)
    return study.phantom, study.display().astype(float) - without.display()


class TestCaptions:
    @pytest.mark.parametrize("style", STYLES)
    def test_parse_inverts_caption_for_every_combination(self, style: Style) -> None:
        captions = {}
        for phantom in all_phantoms():
            captions[phantom.caption(style)] = phantom
            assert phantoms.parse_caption(phantom.caption(style)) == phantom.attributes()
        assert len(captions) == len(PROTOCOLS) * (1 + 3 * 3 * 2 * 2 * 2)

    def test_styles_read_as_documented(self) -> None:
        phantom = Phantom(PROTOCOLS[0], Lesion("large", "round", "dense", "left", "upper", 84.0))
        assert phantom.caption("plain") == "chest x-ray, large round dense lesion, left upper zone"
        assert (
            phantom.caption("report") == "Frontal chest radiograph: a large round dense lesion in the left upper zone."
        )
        assert Phantom(PROTOCOLS[0], None).caption("report") == "Frontal chest radiograph: no focal lesion."

    def test_words_inside_words_do_not_count(self) -> None:
        assert phantoms.parse_caption("hyperdense background, headless ovalish") == {"density": "hyperdense"}
        assert phantoms.parse_caption("") == {}

    def test_accuracy_by_attribute(self) -> None:
        truth = "Axial CT of the chest: a large oval hypodense lesion in the left anterior quadrant."
        references = {"a": truth, "b": truth, "c": "Axial CT of the head: no focal lesion.", "d": truth}
        predictions = {
            "a": truth,
            "b": "Axial CT of the chest: a small oval hypodense lesion in the left posterior quadrant.",
            "c": "Axial CT of the head: a large oval hypodense lesion in the left anterior quadrant.",
        }
        assert attribute_accuracy(predictions, references) == {
            "modality": 3 / 4, "body_part": 3 / 4, "lesion": 2 / 4, "size": 1 / 3, "shape": 2 / 3, "density": 2 / 3,
            "side": 2 / 3, "zone": 1 / 3, "quadrant": 1 / 3, "exact": 1 / 4,
        }  # fmt: skip
        assert attribute_accuracy({}, {}) == {}


class TestPictures:
    def test_a_study_is_a_function_of_seed_and_index(self) -> None:
        first, again = draw(1, 7), draw(1, 7)
        assert first.phantom == again.phantom
        assert first.acquisition == again.acquisition
        np.testing.assert_array_equal(first.stored, again.stored)
        for other in (draw(1, 8), draw(2, 7)):
            assert not np.array_equal(other.stored, first.stored)

    @pytest.mark.parametrize("pixels", [64, 128, 200])
    def test_twelve_bits_at_any_size(self, pixels: int) -> None:
        for index in range(12):
            stored = draw(0, index, pixels=pixels).stored
            assert stored.shape == (pixels, pixels)
            assert stored.dtype == np.uint16
            assert stored.max() <= 4095
            assert np.unique(stored).size > 256  # 8 bits would not hold it

    def test_too_few_pixels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="64 pixels"):
            draw(0, 0, pixels=32)

    def test_the_lesion_is_where_and_what_the_caption_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        areas: dict[str, list[float]] = {size: [] for size in SIZES}
        for index in range(80):
            phantom, change = lesion_alone(monkeypatch, index)
            if (lesion := phantom.lesion) is None:
                assert not change.any()
                continue
            mark = np.abs(change) > 20
            rows, columns = np.nonzero(mark)
            assert (lesion.side == "left") == (columns.mean() > 64)  # the patient's left is the picture's right
            assert (lesion.zone in ("upper", "anterior")) == (rows.mean() < 64)
            assert lesion.density == phantom.protocol.densities[int(change[mark].mean() > 0)]
            areas[lesion.size].append(float(mark.sum()))
        assert np.mean(areas["small"]) < 0.6 * np.mean(areas["medium"]) < 0.36 * np.mean(areas["large"])

    def test_every_word_comes_up_about_equally(self) -> None:
        found = [draw(5, index, pixels=64).phantom.attributes() for index in range(600)]
        for name, kinds in {"size": 3, "shape": 3, "side": 2}.items():
            words = [facts[name] for facts in found if name in facts]
            shares = [words.count(word) / len(words) for word in sorted(set(words))]
            assert len(shares) == kinds
            assert min(shares) > 0.75 / kinds
        present = sum(facts["lesion"] == "present" for facts in found) / len(found)
        assert 0.85 < present < 0.95

    def test_asymmetric_anatomy_follows_the_convention(self) -> None:
        """Stomach bubble under the left dome, apex of the heart to the left, liver on the right."""
        by_part = {part: [] for part in ("radiograph chest", "CT abdomen")}
        for index in range(150):
            study = draw(9, index)
            kind = f"{study.phantom.protocol.modality} {study.phantom.protocol.body_part}"
            if kind in by_part:
                by_part[kind].append(study.display().astype(float))
        film, slice_ = (np.mean(pictures, axis=0) for pictures in by_part.values())
        assert film[108:116, 90:102].mean() + 30 < film[108:116, 26:38].mean()
        assert film[80:92, 66:82].mean() > film[80:92, 46:62].mean() + 15  # the heart's apex
        assert slice_[40:60, 25:50].mean() > slice_[40:60, 78:103].mean() + 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "phantoms"
    return write_dicom_set(path, splits={"train": 40, "valid": 5, "test": 5}, seed=4, first=100)


class TestDicom:
    def test_files_are_valid_dicom_and_say_they_are_synthetic(self, folder: Path) -> None:
        seen, uids = set(), set()
        files = sorted(folder.glob("*/*.dcm"))
        assert len(files) == 50
        for path in files:
            ds = pydicom.dcmread(path)
            seen.add((ds.Modality, ds.SOPClassUID.name, ds.PhotometricInterpretation))
            uids.add(ds.SOPInstanceUID)
            assert ds.SOPInstanceUID.is_valid
            assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
            assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 12, 11, 0)
            assert ds.PatientName == "PHANTOM^SYNTHETIC"
            assert ds.QualityControlSubject == "YES"
            assert ds.ImageType[0] == "DERIVED"
            assert "ynthetic" in ds.SeriesDescription + ds.ImageComments
            assert ds.PixelSpacing[0] * ds.Columns == pytest.approx(240 if ds.BodyPartExamined == "HEAD" else 400)
        assert len(uids) == 50
        assert {modality for modality, _, _ in seen} == {"CR", "DX", "CT", "MR"}
        assert {photometric for modality, _, photometric in seen if modality in ("CT", "MR")} == {"MONOCHROME2"}
        assert "MONOCHROME1" in {photometric for _, _, photometric in seen}
        assert "Synthetic" in (folder / "README.txt").read_text()

    def test_pydicom_displays_what_the_study_displays(self) -> None:
        kinds = set()
        for index in range(60):
            study = draw(6, index)
            ds = to_dicom(study, 6, index)
            ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
            shown = apply_windowing(apply_modality_lut(ds.pixel_array, ds), ds)
            low, high = (0, 4095) if ds.Modality != "CT" else (-1024, 3071)
            shown = (shown - low) / (high - low) * 255
            if ds.PhotometricInterpretation == "MONOCHROME1":
                shown = 255 - shown
            np.testing.assert_allclose(study.display(), shown, atol=0.51)
            kinds.add((ds.Modality, ds.PhotometricInterpretation))
        assert len(kinds) == 6  # CR and DX in both senses, CT, MR

    def test_monochrome1_displays_as_monochrome2_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        index = next(i for i in range(100) if draw(6, i).acquisition.photometric == "MONOCHROME1")
        inverted = draw(6, index)
        monkeypatch.setattr(phantoms, "MONOCHROME1_SHARE", 0)
        plain = draw(6, index)
        assert plain.acquisition.photometric == "MONOCHROME2"
        assert np.abs(plain.stored.astype(int) - (4095 - inverted.stored.astype(int))).max() <= 1
        assert np.abs(plain.display().astype(int) - inverted.display()).max() <= 1

    def test_ct_stores_hounsfield_units(self) -> None:
        studies = (draw(2, index) for index in range(100))
        chest = next(s for s in studies if s.phantom.protocol.report == "Axial CT of the chest")
        units = chest.stored.astype(int) + chest.acquisition.intercept
        assert np.median(units[:8]) == pytest.approx(-1000, abs=30)  # air around the patient
        assert np.percentile(units, 99.5) > 250  # bone

    def test_read_image_gives_the_displayed_picture(self, folder: Path) -> None:
        for number, path in enumerate(sorted(folder.glob("train/*.dcm"))):
            pixels = read_image(path).pixels
            np.testing.assert_allclose(pixels[0], draw(4, 100 + number).display() / 255, atol=0.003)

    def test_captions_list_every_file_with_its_facts(self, folder: Path) -> None:
        ids = []
        for split, count in (("train", 40), ("valid", 5), ("test", 5)):
            with (folder / f"{split}_captions.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == count
            assert tuple(rows[0]) == COLUMNS
            for row in rows:
                assert (folder / f"{row['ID']}.dcm").is_file()
                facts = {name: row[name] for name in COLUMNS[2:] if row[name]}
                assert phantoms.parse_caption(row["Caption"]) == facts
            ids += [row["ID"].rsplit("/")[-1] for row in rows]
        assert ids == [f"phantom_{number:05d}" for number in range(100, 150)]  # no study is in two splits

    def test_no_picture_is_in_two_splits(self, folder: Path) -> None:
        pictures = {pydicom.dcmread(path).PixelData for path in folder.glob("*/*.dcm")}
        assert len(pictures) == 50

    def test_the_same_bytes_again(self, folder: Path, tmp_path: Path) -> None:
        write_dicom_set(tmp_path, splits={"valid": 5}, seed=4, first=140)
        for path in tmp_path.glob("valid*/*"):
            assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
        assert (tmp_path / "valid_captions.csv").read_bytes() == (folder / "valid_captions.csv").read_bytes()


class TestShards:
    def test_img2dataset_layout(self, tmp_path: Path) -> None:
        shards = write_shards(tmp_path, count=10, seed=4, shard_size=4, first=100)
        assert [path.name for path in shards] == ["00000.tar", "00001.tar", "00002.tar"]
        with tarfile.open(shards[1]) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert list(content)[:4] == ["000010000.png", "000010000.txt", "000010000.json", "000010001.png"]
        assert len(content) == 12
        study = draw(4, 104)
        picture = Image.open(io.BytesIO(content["000010000.png"]))
        np.testing.assert_array_equal(np.asarray(picture), study.display())
        caption = content["000010000.txt"].decode()
        assert caption == study.phantom.caption("plain")
        about = json.loads(content["000010000.json"])
        assert about["caption"] == caption
        assert about["key"] == "000010000"
        assert about["synthetic"] is True

    def test_the_same_bytes_again(self, tmp_path: Path) -> None:
        first, again = (write_shards(tmp_path / name, count=3, seed=1)[0].read_bytes() for name in "ab")
        assert first == again

    @pytest.mark.parametrize("shard_size", [0, 10_001])
    def test_a_shard_size_that_breaks_the_keys_is_refused(self, tmp_path: Path, shard_size: int) -> None:
        with pytest.raises(ValueError, match="1 to 10000"):
            write_shards(tmp_path, count=1, seed=0, shard_size=shard_size)
