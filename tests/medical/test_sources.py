"""What a path, an archive, a DICOMDIR or standard input holds, and what of it is refused."""

import io
import os
import shutil
import stat
import sys
import tracemalloc
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
    (item,) = find_inputs([path])
    assert str(item.refusal) == "damaged: begins as a zip archive and is none (BadZipFile)"


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


def test_a_name_that_stands_twice_is_checked_again_when_it_is_read(tmp_path, dicom, monkeypatch):
    monkeypatch.setattr(sources, "MAX_INFLATION", (2**20, 200))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x", dicom)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x", bytes(10**7))
    first, second = find_inputs([path])
    assert first.refusal is None
    assert second.refusal is not None
    with pytest.raises(UnreadableImage, match="too large"):  # the name means the last of them
        load(first)


def test_a_member_that_states_less_than_it_holds_is_not_inflated(tmp_path):
    size, stated = 2**27, 1000
    content = bytearray(archive(tmp_path / "a.zip", {"x": bytes(size)}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(mark) + offset
        content[at : at + 4] = stated.to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    (item,) = find_inputs([tmp_path / "a.zip"])
    assert item.refusal is None
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage, match="damaged"):
            load(item)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused_by_name(tmp_path, dicom, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("x", dicom)
    (item,) = find_inputs([tmp_path / "a.zip"])
    assert item.refusal is not None
    assert item.refusal.kind == "not supported"


def test_an_archive_on_standard_input_is_limited_as_a_whole(monkeypatch, tmp_path):
    content = archive(tmp_path / "a.zip", {name: bytes(600) for name in "ab"}).read_bytes()
    assert len(content) < 1000
    monkeypatch.setattr(sources, "MAX_HELD", 1000)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(UsageError, match="more than 1,000 bytes"):
        list(find_inputs(["-"]))


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, dicom, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a").write_bytes(dicom)
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    good, shut = find_inputs([tmp_path])
    assert good.refusal is None
    assert (shut.name, str(shut.refusal)) == (str(tmp_path / "shut"), "cannot be opened: Permission denied")


@pytest.mark.parametrize("components", ["ZZMARK" * 60, ["ZZMARK", ""], "/ZZMARK", "ZZ\0MARK", ["ZZMARK", "X"]])
def test_nothing_of_a_bad_dicomdir_entry_is_said(tmp_path, components, capfd, caplog, recwarn):
    path = tmp_path / "DICOMDIR"
    with quiet_pydicom():
        dataset = dcmread(dicomdir())
        (record,) = [r for r in dataset.DirectoryRecordSequence if "ReferencedFileID" in r][:1]
        record.ReferencedFileID = components
        dataset.DirectoryRecordSequence = [record]
        dataset.save_as(path)
    (item,) = find_inputs([path])
    assert item.refusal is not None
    captured = capfd.readouterr()
    said = [repr(item), str(item.refusal), caplog.text, captured.out, captured.err, *(str(w.message) for w in recwarn)]
    assert not any("MARK" in text for text in said)


def test_a_member_without_a_name_is_refused(tmp_path, dicom):
    content = archive(tmp_path / "a.zip", {"x.dcm": dicom}).read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"x.dcm", b"\0.dcm"))
    (item,) = find_inputs([tmp_path / "a.zip"])
    assert str(item.refusal) == "damaged: it has no name"
