"""What a path, an archive, a DICOMDIR or standard input holds, and what of it is refused."""

import io
import shutil
import stat
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from grrcoca_cli.errors import UnreadableImage, UsageError
from medical import sources
from medical.dicom import quiet_pydicom
from medical.sources import ImageInput, directory_entries, find_inputs, load, read_input

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.fixture
def dicom(make_dicom) -> bytes:
    return make_dicom(GREY)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def names(items: list[ImageInput]) -> list[str]:
    return [item.name for item in items]


def test_a_folder_in_order_without_hidden_files_and_links(tmp_path, dicom):
    for name in ("b/2", "b/1", "a.dcm", ".hidden", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(dicom)
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    found = list(find_inputs([tmp_path]))
    assert names(found) == [str(tmp_path / name) for name in ("a.dcm", "b/1", "b/2")]
    assert not any(item.named or item.grouped for item in found)
    (named,) = find_inputs([str(tmp_path / "a.dcm")])
    assert named.named
    with pytest.raises(UsageError, match="does not exist"):
        list(find_inputs([tmp_path / "absent"]))


def test_an_archive_is_known_by_content_and_read_in_place(tmp_path, dicom):
    members = {"s/2.dcm": dicom, "s/1": dicom, "__MACOSX/x": b"", ".DS_Store": b"", "d/": b""}
    path = archive(tmp_path / "study.bin", members)
    found = list(find_inputs([path]))
    assert names(found) == [f"{path}/s/1", f"{path}/s/2.dcm"]
    assert all(item.grouped and load(item) == dicom for item in found)
    assert read_input((found[0], "auto", None)).pixels.shape == (1, 8, 8)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["study.bin"]


@pytest.mark.parametrize("name", ["../up.dcm", "/etc/passwd", "a/../../b", "C:\\x.dcm", "..\\up.dcm"])
def test_a_member_that_leaves_its_folder_is_refused(tmp_path, dicom, name):
    found = list(find_inputs([archive(tmp_path / "a.zip", {name: dicom, "good": dicom})]))
    refusals = {item.member: item.refusal for item in found}
    assert refusals.pop("good") is None
    assert [refusal.kind for refusal in refusals.values()] == ["unsafe path"]


def test_links_locked_members_and_bombs_are_refused(tmp_path, dicom, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("zeros", bytes(10**7))
        file.writestr("good", dicom)
    monkeypatch.setattr(sources, "MAX_INFLATION", (2**20, 200))
    kinds = {item.member: item.refusal.kind if item.refusal else "" for item in find_inputs([path])}
    assert kinds == {"good": "", "link": "unsafe path", "zeros": "too large"}
    locked = bytearray(archive(path, {"x": dicom}).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    (item,) = find_inputs([path])
    assert item.refusal is not None
    assert item.refusal.kind == "encrypted"


def test_a_damaged_archive(tmp_path, dicom):
    path = archive(tmp_path / "a.zip", {"x": dicom * 20})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    (item,) = find_inputs([path])
    with pytest.raises(UnreadableImage, match="damaged: the archive does not give it"):
        load(item)
    path.write_bytes(content[:100])
    with pytest.raises(UsageError, match="cannot be read as one"):
        list(find_inputs([path]))


@pytest.mark.parametrize("zipped", [False, True])
def test_standard_input(monkeypatch, tmp_path, dicom, zipped):
    content = archive(tmp_path / "a.zip", {"m": dicom}).read_bytes() if zipped else dicom
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    (item,) = find_inputs(["-"])
    assert item.name == ("-/m" if zipped else "-")
    assert load(item) == dicom
    assert "content" not in repr(item)
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(UsageError, match="more than 10 bytes"):
        list(find_inputs(["-"]))


def dicomdir() -> Path:
    path = get_testdata_file("DICOMDIR", download=False)
    assert path is not None
    return Path(path)


def test_a_dicomdir_names_its_files():
    found = list(find_inputs([dicomdir()]))
    assert len(found) == 31
    assert all(item.refusal is None and item.grouped and item.path.is_file() for item in found)


def test_a_dicomdir_entry_that_leaves_or_is_missing_is_refused(tmp_path):
    shutil.copytree(dicomdir().parent, tmp_path / "cd")
    path = tmp_path / "cd" / "DICOMDIR"
    (tmp_path / "outside").write_bytes(b"x")
    (tmp_path / "cd" / "LINK").symlink_to(tmp_path / "outside")
    with quiet_pydicom():  # it warns of such a value
        dataset = dcmread(path)
        images = [record for record in dataset.DirectoryRecordSequence if "ReferencedFileID" in record]
        images[0].ReferencedFileID = ["..", "outside"]
        images[1].ReferencedFileID = ["NOT", "THERE"]
        images[2].ReferencedFileID = ["LINK"]
        dataset.save_as(path)
    refused = {item.name: item.refusal.kind for item in find_inputs([path]) if item.refusal}
    assert refused == {
        f"{path} record 1": "unsafe path",
        f"{path} record 2": "no such file",
        f"{path} record 3": "unsafe path",
    }
    assert directory_entries(path)[0] == ("..", "outside")
