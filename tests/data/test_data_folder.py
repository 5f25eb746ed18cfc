import json
from pathlib import Path

import pytest

from grrcoca_cli.data.folder import list_splits, open_folder
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.errors import HasNoSplits, UsageError


def fill(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def captions(root: Path, split: str | None = None) -> dict[str, tuple[str, ...]]:
    return {sample.key: sample.captions for sample in open_folder(root, split).samples}


def test_vqa_rad(shared_data: Path) -> None:
    root = shared_data / "vqa-rad-cc0"
    assert list_splits(root) == ["test", "train", "valid"]
    for names, count in ((("train",), 153), (("valid", "validation", "val", "dev"), 19), (("test",), 20)):
        for name in names:
            dataset = open_folder(root, name)
            assert len(dataset) == count
            assert not dataset.skipped
    assert len(open_folder(root)) == 192
    assert read_picture(dataset[0].image).shape[0] in (1, 3)


def test_chest_radiographs_and_rocov2(shared_data: Path) -> None:
    dataset = open_folder(shared_data / "cxr-ccby-mini")
    assert len(dataset) == 8
    assert dataset[0].fields["view"] == "PA"
    rocov2 = shared_data / "roco-images-mini" / "rocov2"
    assert len(open_folder(rocov2, "train")) == 5
    assert len(open_folder(rocov2, "test")) == 1


def test_columns_separators_and_dirty_captions(tmp_path: Path) -> None:
    fill(tmp_path, {f"images/{name}.png": "" for name in "abcdef"})
    fill(
        tmp_path,
        {
            "one.csv": '\ufeffID,Caption,patient\na,"  two\nlines, quoted ",p1\nb,,p2\nghost,x,\n',
            "two.csv": "Image;Text\nc.png;semicolons, commas\n",
            "three.tsv": "filename\tcaption\nd\ttabs\n",
            "four.jsonl": '{"file_name": "images/e.png", "captions": ["one", " ", "two"], "n": 3}\n\nnot json\n["f"]\n',
            "meta/five.csv": "path,caption\n../images/f.png,from below\n",
            "concepts.csv": "ID,CUIs\na,C1\n",
        },
    )
    dataset = open_folder(tmp_path)
    assert captions(tmp_path) == {
        "images/a.png": ("two lines, quoted",),
        "images/c.png": ("semicolons, commas",),
        "images/d.png": ("tabs",),
        "images/e.png": ("one", "two"),
        "images/f.png": ("from below",),
    }
    assert {sample.key: sample.fields for sample in dataset.samples if sample.fields} == {
        "images/a.png": {"patient": "p1"},
        "images/e.png": {"n": "3"},
    }
    assert dataset.skipped == {"empty caption": 3, "no picture": 1}
    assert list_splits(tmp_path) == []


def test_rows_of_one_picture_are_captions_of_one_sample(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "", "captions.csv": "file,caption\na.png,one\na,two\na.png,one\n./a.png,one\n"})
    dataset = open_folder(tmp_path)
    assert captions(tmp_path) == {"a.png": ("one", "two")}
    assert dataset.skipped == {"duplicate row": 2}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "..", "..\\secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "set", {"a/x.png": "", "captions.jsonl": ""})
    fill(tmp_path, {"secret.png": "", "set/captions.jsonl": json.dumps({"image": name, "caption": "c"})})
    dataset = open_folder(root)
    assert len(dataset) == 0
    assert dataset.skipped == {"picture outside the folder": 1}


def test_an_absolute_path_inside_is_taken(tmp_path: Path) -> None:
    fill(tmp_path, {"a/x.png": "", "captions.csv": f"image,caption\n{tmp_path}/a/x.png,c\n"})
    assert captions(tmp_path) == {"a/x.png": ("c",)}


def test_dicom_by_extension_or_uid(tmp_path: Path) -> None:
    files = ["1.dcm", "2.IMA", "3.dicom", "IM0004", "1.2.840.5"]
    fill(tmp_path, {f"scans/{name}": "" for name in files})
    fill(tmp_path, {"c.csv": "file,text\n1,a\n2.IMA,b\n3,c\nIM0004,d\n1.2.840.5,e\n"})
    assert set(captions(tmp_path)) == {f"scans/{name}" for name in files}


def test_the_split_s_folder_decides_between_pictures_of_one_name(tmp_path: Path) -> None:
    fill(tmp_path, {f"{folder}/0.jpg": "" for folder in ("train", "val", "a/x", "b/x")})
    fill(tmp_path, {"train_captions.csv": "ID,caption\n0,first\n", "captions-dev.csv": "ID,caption\n0,second\n"})
    fill(tmp_path, {"test.csv": "ID,caption\n0,third\nb/x/0,fourth\n"})
    assert captions(tmp_path, "train") == {"train/0.jpg": ("first",)}
    assert captions(tmp_path, "valid") == {"val/0.jpg": ("second",)}
    assert captions(tmp_path, "test") == {"b/x/0.jpg": ("fourth",)}
    assert open_folder(tmp_path, "test").skipped == {"ambiguous picture": 1}


def test_split_column_and_split_folder(tmp_path: Path) -> None:
    fill(tmp_path, {f"{name}.png": "" for name in "abc"})
    fill(tmp_path, {"c.csv": "file,caption,Split\na,1,Training\nb,2,val\nc,3,holdout\n"})
    assert list_splits(tmp_path) == ["holdout", "train", "valid"]
    assert captions(tmp_path, "Holdout") == {"c.png": ("3",)}
    hub = fill(tmp_path / "hub", {"train/x.png": "", "train/metadata.jsonl": '{"file_name": "x.png", "text": "t"}'})
    assert captions(hub, "train") == {"train/x.png": ("t",)}


def test_text_files_beside_pictures(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.jpg": "", "train/a.txt": " CT\n", "train/b.png": "", "test/c.dcm": "", "test/c.txt": "MR"})
    fill(tmp_path, {"LICENSE": "", "readme.txt": "notes", ".hidden/d.jpg": "", ".hidden/d.txt": "x"})
    assert captions(tmp_path) == {"test/c.dcm": ("MR",), "train/a.jpg": ("CT",)}
    assert captions(tmp_path, "train") == {"train/a.jpg": ("CT",)}
    assert open_folder(tmp_path).skipped == {"empty caption": 1}


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    fill(tmp_path, {"elsewhere/a.png": "", "set/c.csv": "file,caption\na.png,c\n"})
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert captions(tmp_path / "set") == {"images/a.png": ("c",)}


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({}, None, "no captions in .*expected a .csv"),
        ({"a.png": ""}, None, "no captions in"),
        ({"c.csv": "file,captoin\na,b\n"}, None, "no caption column .*'file', 'captoin'; did you mean 'captoin'"),
        ({"c.csv": "imge,caption\na,b\n"}, None, "no picture column .*'imge', 'caption'; did you mean 'imge'"),
        ({"a.png": "", "train.csv": "file,caption\na,b\n"}, "test", "no split 'test': its splits are train"),
    ],
)
def test_usage_errors(tmp_path: Path, files: dict[str, str], split: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_folder(fill(tmp_path, files), split)


def test_a_folder_without_splits_says_so_by_its_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "", "c.csv": "file,caption\na,b\n"})
    with pytest.raises(HasNoSplits, match="no split 'train': it has no splits"):
        open_folder(tmp_path, "train")


def test_a_missing_folder_and_text_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        open_folder(tmp_path / "none")
    (tmp_path / "c.csv").write_bytes(b"file,caption\na,caf\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        open_folder(tmp_path)


def test_a_broken_table_of_a_split_is_no_missing_split(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "train_captions.csv").write_text("file,caption\na.png,a mass\n")
    assert len(open_folder(tmp_path, "train")) == 1
    (tmp_path / "valid_captions.csv").write_text("file,words\na.png,a mass\n")
    with pytest.raises(UsageError, match=r"valid_captions\.csv is named as the captions of a split"):
        open_folder(tmp_path, "train")
