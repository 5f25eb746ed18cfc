"""MS-COCO and Flickr30k on small folders in their own layouts."""

import json
from pathlib import Path

import pytest

from grrcoca_cli.data.base import ListDataset
from grrcoca_cli.data.coco import open_coco, open_flickr30k
from grrcoca_cli.errors import HasNoSplits, UsageError


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\xff\xd8\xff")


def karpathy(path: Path, *rows: tuple[str, str, str, list[str]]) -> None:
    images = [
        {"filepath": folder, "filename": name, "split": split, "sentences": [{"raw": text} for text in captions]}
        for folder, name, split, captions in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))


def shown(dataset: ListDataset) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.key, sample.captions) for sample in dataset.samples]


@pytest.mark.parametrize("inner", ["", "images/"])
def test_karpathys_splits_of_coco(tmp_path: Path, inner: str) -> None:
    pictures(tmp_path, f"{inner}train2014/a.jpg", f"{inner}val2014/b.jpg", f"{inner}val2014/c.jpg")
    karpathy(
        tmp_path / "dataset_coco.json",
        ("train2014", "a.jpg", "train", ["a dog\u2028runs", " ", "two  dogs"]),
        ("val2014", "b.jpg", "restval", ["a cat"]),
        ("val2014", "c.jpg", "val", ["a cow"]),
        ("val2014", "d.jpg", "test", ["not downloaded"]),
    )
    assert shown(open_coco(tmp_path, "train")) == [("a", ("a dog runs", "two dogs")), ("b", ("a cat",))]
    assert shown(open_coco(tmp_path, "valid")) == [("c", ("a cow",))]
    assert open_coco(tmp_path, "test").skipped == {"no picture": 1}
    assert len(open_coco(tmp_path, "all")) == 3
    with pytest.raises(UsageError, match="no split 'other': it has test, train, valid"):
        open_coco(tmp_path, "other")


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_the_annotation_files_of_coco(tmp_path: Path, year: str) -> None:
    pictures(tmp_path, f"val{year}/000000000007.jpg")
    (tmp_path / "annotations").mkdir()
    annotations = [{"image_id": 7, "id": 1, "caption": "a dog."}, {"image_id": 7, "id": 2, "caption": "A dog!"}]
    document = {"images": [{"id": 7, "file_name": "000000000007.jpg"}], "annotations": annotations}
    (tmp_path / "annotations" / f"captions_val{year}.json").write_text(json.dumps(document))
    for name in ("val", "valid", "validation"):
        assert shown(open_coco(tmp_path, name)) == [("000000000007", ("a dog.", "A dog!"))]
    with pytest.raises(UsageError, match=r"captions_train.*it has captions_val.*cocodataset"):
        open_coco(tmp_path, "train")


def test_flickr30k_in_its_own_layouts(tmp_path: Path) -> None:
    pictures(tmp_path, "flickr30k-images/1.jpg", "flickr30k-images/2.jpg")
    (tmp_path / "results_20130124.token").write_text(
        "1.jpg#0\tTwo men .\n1.jpg#1\tMen\n2.jpg#0\tA tab\there\n3.jpg#0\tx\n"
    )
    found = open_flickr30k(tmp_path, "all")
    assert shown(found) == [("1", ("Two men .", "Men")), ("2", ("A tab here",))]
    assert found.skipped == {"no picture": 1}
    for split in ("train", "valid"):
        with pytest.raises(HasNoSplits, match="has no splits"):
            open_flickr30k(tmp_path, split)

    (tmp_path / "results_20130124.token").unlink()
    (tmp_path / "results.csv").write_text('image_name| comment_number| comment\n1.jpg| 0| Two "men" .\n1.jpg| 1| Men\n')
    assert shown(open_flickr30k(tmp_path, "all")) == [("1", ('Two "men" .', "Men"))]

    karpathy(tmp_path / "dataset_flickr30k.json", ("", "1.jpg", "test", ["Two men"]), ("", "2.jpg", "train", ["x"]))
    assert shown(open_flickr30k(tmp_path, "test")) == [("1", ("Two men",))]


@pytest.mark.parametrize("opener", [open_coco, open_flickr30k])
def test_what_is_not_there_says_how_to_get_it(tmp_path: Path, opener) -> None:
    with pytest.raises(UsageError, match="no folder"):
        opener(tmp_path / "absent", "train")
    with pytest.raises(UsageError, match="Karpathy"):
        opener(tmp_path, "train")
    name = "dataset_coco.json" if opener is open_coco else "dataset_flickr30k.json"
    karpathy(tmp_path / name, ("", "1.jpg", "train", ["x"]))
    with pytest.raises(UsageError, match="holds no pictures"):
        opener(tmp_path, "train")
    (tmp_path / name).write_text("[1")
    with pytest.raises(UsageError, match="not valid JSON"):
        opener(tmp_path, "train")
