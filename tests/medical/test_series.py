"""Files of a series as volumes, in the order of their place in the patient."""

from pathlib import Path

import numpy as np
import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import generate_uid

from grrcoca_cli.errors import UnreadableImage
from medical.guard import guarded_map
from medical.series import Header, choose, group_series, read_header
from medical.sources import ImageInput

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
AXIAL = [1, 0, 0, 0, 1, 0]
SALT = b"salt"


def header(data: bytes) -> Header:
    return read_header((ImageInput("x", None, content=data), SALT))


def test_a_header_holds_no_value_that_identifies(make_dicom):
    uid = generate_uid()
    data = make_dicom(
        GREY,
        SeriesInstanceUID=uid,
        PatientName="ZZMARK",
        ImageOrientationPatient=AXIAL,
        ImagePositionPatient=[1, 2, 3.5],
    )
    found = header(data)
    assert (found.position, found.rows, found.frames, found.localizer) == (3.5, 8, 1, False)
    assert uid not in repr(found)
    assert "ZZMARK" not in repr(found)
    assert found == header(data)
    assert found.series != read_header((ImageInput("x", None, content=data), b"other")).series


def test_slices_are_sorted_along_their_normal(make_dicom):
    uid = generate_uid()
    sagittal = [0, 1, 0, 0, 0, -1]  # normal -x
    places = [5.0, -2.5, 0.0, 2.5]
    headers = [
        header(
            make_dicom(
                GREY,
                SeriesInstanceUID=uid,
                ImageOrientationPatient=sagittal,
                ImagePositionPatient=[place, 7, 9],
                InstanceNumber=number,
            )
        )
        for number, place in enumerate(places)
    ]
    assert group_series(headers).volumes == [[0, 3, 2, 1]]


def test_groups_part_by_series_orientation_and_shape():
    def slice_at(position: float, **changed) -> Header:
        values = {"series": "a", "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "rows": 8, "columns": 8, **changed}
        return Header(position=position, **values)

    refusal = UnreadableImage("not an image", "Basic Text SR Storage")
    headers = [
        slice_at(2),
        slice_at(0, series="b"),
        slice_at(1),
        slice_at(0, rows=9),
        slice_at(0, localizer=True),
        refusal,
        slice_at(0, frames=30),
        Header(),
        slice_at(3, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
    ]
    found = group_series(headers)
    assert found.volumes == [[2, 0], [1], [3], [6], [7], [8]]
    assert found.localizers == [4]
    assert found.refused == {5: refusal}


def test_without_positions_the_instance_number_decides_and_then_the_order():
    headers = [Header(series="a", instance=number) for number in (3, 1, 2)]
    assert group_series(headers).volumes == [[1, 2, 0]]
    assert group_series([Header(series="a")] * 3).volumes == [[0, 1, 2]]


def test_which_slice():
    assert choose(5, "auto") == choose(5, "middle") == [2]
    assert choose(4, "first") == [0]
    assert choose(3, 2) == [2]
    assert choose(3, "all") == [0, 1, 2]
    with pytest.raises(UnreadableImage, match="slice 3 of 3"):
        choose(3, 3)


def test_headers_through_the_guard(tmp_path: Path, make_dicom):
    (tmp_path / "a.dcm").write_bytes(
        make_dicom(GREY, SeriesInstanceUID=generate_uid(), ImageType=["X", "Y", "LOCALIZER"])
    )
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "c.dcm").write_bytes(make_dicom(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None))
    items = [ImageInput(name, tmp_path / name) for name in ("a.dcm", "b.png", "c.dcm")]
    found = list(guarded_map(read_header, [(item, SALT) for item in items], workers=1))
    assert found[0].localizer
    assert found[1] == Header()
    assert str(found[2]) == "not an image: Basic Text SR Storage"


def test_cosines_that_differ_at_a_rounding_edge_are_one_volume():
    orientations = [(1.0, edge, 0.0, 0.0, 1.0, 0.0) for edge in (0.00049, 0.00051, -0.00002)]
    headers = [Header(series="a", orientation=o, position=float(place)) for place, o in enumerate(orientations)]
    assert group_series(headers).volumes == [[0, 1, 2]]
    tilted = Header(series="a", orientation=(1.0, 0.02, 0.0, -0.02, 1.0, 0.0), position=9.0)
    assert group_series([*headers, tilted]).volumes == [[0, 1, 2], [3]]


def test_a_slice_without_position_has_the_numbers_decide_for_all():
    places = [(-50.0, 3), (None, 1), (-48.0, 2)]
    headers = [Header(series="a", position=position, instance=number) for position, number in places]
    assert group_series(headers).volumes == [[1, 2, 0]]


def test_cosines_that_are_none_give_no_position(make_dicom):
    for cosines in (["1e200"] * 6, [0] * 6, [1, 0, 0, 1, 0, 0]):
        data = make_dicom(GREY, ImageOrientationPatient=cosines, ImagePositionPatient=["1e200", "-1e200", "1"])
        assert header(data).position is None


@pytest.mark.parametrize("name", ["RT Dose Storage", "Segmentation Storage"])
def test_objects_with_pixels_that_are_no_picture_are_reported(make_dicom, name):
    uid = next(uid for uid, entry in UID_dictionary.items() if entry[0] == name)
    with pytest.raises(UnreadableImage, match=f"^not an image: {name}$"):
        header(make_dicom(GREY, SOPClassUID=uid))


def test_frames_that_cannot_be_in_the_file_are_refused(make_dicom):
    with pytest.raises(UnreadableImage, match="40,000,000 frames cannot be in"):
        header(make_dicom(GREY, NumberOfFrames=40_000_000))
    assert header(make_dicom(np.stack([GREY] * 3), NumberOfFrames=3)).frames == 3
