"""ROCO in its three layouts, with the blemishes of the real text files."""

import pickle
import sys
from pathlib import Path

import pytest

from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.errors import UsageError
from medical.roco import open_roco

JPEG = b"\xff\xd8\xff"


def write_v1(root: Path, part: str = "train/radiology") -> Path:
    folder = root / part
    (folder / "images").mkdir(parents=True)
    for number in (1, 2, 3, 5, 6):
        (folder / "images" / f"ROCO_0000{number}.jpg").write_bytes(JPEG)
    (folder / "captions.txt").write_bytes(
        "ROCO_00001\t Left\tlung\u00a0 with a 4.3 × 3.7 cm mass. \r\n"
        "ROCO_00002\t \u00a0\t \n"
        "ROCO_00003\t Tumeur\u2028vésicale\x0c.\n"
        "ROCO_00004\t no picture of this one\n"
        "ROCO_00005 no tab\n"
        "\n"
        "ROCO_00001\t once more\n"
        "ROCO_00006\t the last, without a line end".encode()
    )
    (folder / "licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_00001,PMC12_some-name.g001.jpg,CC BY\n")
    (folder / "keywords.txt").write_text("ROCO_00001\t\tlung\tmass\nROCO_00003\t\n")
    (folder / "cuis.txt").write_text("ROCO_00001\t\tC01\tC02\n")
    return root


@pytest.mark.parametrize("inner", [".", "data", "all_data"])
def test_the_repositorys_layout_from_any_of_its_roots(tmp_path, inner):
    write_v1(tmp_path / inner)
    roco = open_roco(tmp_path, "train")
    assert [(sample.key, sample.captions[0]) for sample in roco] == [
        ("ROCO_00001", "Left lung with a 4.3 × 3.7 cm mass."),
        ("ROCO_00003", "Tumeur vésicale ."),
        ("ROCO_00006", "the last, without a line end"),
    ]
    assert roco.skipped == {"empty caption": 1, "no picture": 1, "malformed row": 1, "repeated id": 1}
    assert roco[0].fields == {"article": "PMC12", "keywords": "lung;mass", "cuis": "C01;C02"}
    assert roco[1].fields == {}
    assert isinstance(roco[0].image, Path)
    assert roco[0].image.read_bytes() == JPEG
    assert len(pickle.loads(pickle.dumps(roco))) == 3


def test_a_picture_named_as_in_its_article_is_found_by_licences(tmp_path):
    folder = write_v1(tmp_path) / "train" / "radiology"
    (folder / "images" / "ROCO_00001.jpg").rename(folder / "images" / "PMC12_some-name.g001.jpg")
    assert open_roco(tmp_path, "train")[0].image == folder / "images" / "PMC12_some-name.g001.jpg"


def test_the_kaggle_copy(tmp_path):
    folder = tmp_path / "all_data" / "validation" / "radiology"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "PMC7_a.b.jpg").write_bytes(JPEG)
    (folder / "valdata.csv").write_bytes(
        b'id,name,caption\r\nROCO_00007,PMC7_a.b.jpg," A, b\n"\r\nROCO_00008,PMC8_c.jpg,gone\r\n'
    )
    roco = open_roco(tmp_path, "valid")
    assert [(sample.key, sample.captions) for sample in roco] == [("ROCO_00007", ("A, b",))]
    assert roco.skipped == {"no picture": 1}


def test_both_kinds_are_radiology_then_the_rest(tmp_path):
    write_v1(tmp_path)
    folder = tmp_path / "train" / "non-radiology"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "ROCO_00009.jpg").write_bytes(JPEG)
    (folder / "captions.txt").write_text("ROCO_00009\t a photograph\n")
    assert [sample.key for sample in open_roco(tmp_path, "train", kind="both")][-1] == "ROCO_00009"
    assert [sample.key for sample in open_roco(tmp_path, "train", kind="non-radiology")] == ["ROCO_00009"]


@pytest.mark.parametrize("images", ["valid_images", "valid"])
@pytest.mark.parametrize("split", ["valid", "validation", "val"])
def test_rocov2_as_on_zenodo(tmp_path, images, split):
    (tmp_path / images).mkdir()
    (tmp_path / images / "ROCOv2_2023_valid_000001.jpg").write_bytes(JPEG)
    (tmp_path / "valid_captions.csv").write_text(
        'ID,Caption\nROCOv2_2023_valid_000001,"Head CT, left. "\nROCOv2_2023_valid_000002,gone\n'
    )
    (tmp_path / "valid_concepts.csv").write_text("ID,CUIs\nROCOv2_2023_valid_000001,C0040405;C0856747\n")
    roco = open_roco(tmp_path, split)
    assert roco[0].captions == ("Head CT, left.",)
    assert roco[0].fields == {"cuis": "C0040405;C0856747"}
    assert (len(roco), roco.skipped) == (1, {"no picture": 1})


def test_what_is_not_there_is_said_with_what_is_and_how_to_get_it(tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*razorx89/roco-dataset"):
        open_roco(tmp_path / "absent", "train")
    write_v1(tmp_path)
    with pytest.raises(UsageError, match=r"neither test/radiology .*nor test_captions\.csv.*it holds: train"):
        open_roco(tmp_path, "test")
    with pytest.raises(UsageError, match="no split 'dev'"):
        open_roco(tmp_path, "dev")
    (tmp_path / "train" / "radiology" / "captions.txt").unlink()
    with pytest.raises(UsageError, match=r"neither captions\.txt"):
        open_roco(tmp_path, "train")
    (tmp_path / "train_captions.csv").write_text("ID,Caption\n")
    with pytest.raises(UsageError, match="no non-radiology part"):
        open_roco(tmp_path, "train", kind="non-radiology")


@pytest.mark.parametrize(
    ("inner", "split", "count"),
    [("roco_v1", "train", 2), ("rocov2", "train", 5), ("rocov2", "test", 1)],
)
def test_the_real_minis_are_read_whole(shared_data, inner, split, count):
    from medical import read_pixels

    roco = open_roco(shared_data / "roco-images-mini" / inner, split)
    assert (len(roco), roco.skipped) == (count, {})
    for sample in roco:
        assert sample.captions[0] == sample.captions[0].strip() != ""
        assert read_pixels(sample.image).shape[0] in (1, 3)


def test_the_real_text_files_are_counted_row_by_row(shared_data, tmp_path):
    roco = open_roco(shared_data / "roco-v1-text", "validation")
    assert (len(roco), roco.skipped) == (0, {"no picture": 3388})
    source = shared_data / "roco-v1-text" / "data" / "validation" / "radiology"
    folder = tmp_path / "validation" / "radiology"
    (folder / "images").mkdir(parents=True)
    for path in source.glob("*.txt"):
        (folder / path.name).write_bytes(path.read_bytes())
    lines = (source / "captions.txt").read_text(encoding="utf-8").split("\n")[:40]
    for line in lines:
        (folder / "images" / f"{line.split()[0]}.jpg").touch()
    roco = open_roco(tmp_path, "validation")
    assert len(roco) == 40
    assert roco.skipped == {"no picture": 3348}
    for sample, line in zip(roco, lines, strict=True):
        assert sample.captions[0] == " ".join(line.split("\t", 1)[1].split())
        assert sample.fields["article"].startswith("PMC")


def write_parquet(path: Path, rows: list[dict[str, object]], group: int = 2) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def hub_row(key: str, caption: str | None, picture: bytes | None = JPEG, cui: list[str] | None = None) -> dict:
    return {"image": {"bytes": picture, "path": None}, "image_id": key, "caption": caption, "cui": cui}


@pytest.mark.parametrize("folder", ["data", "."])
def test_the_hubs_parquet(tmp_path, folder):
    rows = [
        hub_row("a", " Left\u00a0lung.\n", JPEG + b"a", ["C1", "C2"]),
        hub_row("b", "", JPEG),
        hub_row("c", "no picture", None),
        hub_row("a", "again"),
        hub_row("d", "the last", JPEG + b"d", ["nan"]),
    ]
    write_parquet(tmp_path / folder / "validation-00000-of-00002.parquet", rows)
    write_parquet(tmp_path / folder / "validation-00001-of-00002.parquet", [hub_row("e", "other file", JPEG + b"e")])
    roco = open_roco(tmp_path, "valid")
    assert [(roco.key(i), roco[i].image, roco[i].captions) for i in range(3)] == [
        ("a", JPEG + b"a", ("Left lung.",)),
        ("d", JPEG + b"d", ("the last",)),
        ("e", JPEG + b"e", ("other file",)),
    ]
    assert roco.skipped == {"empty caption": 1, "no picture": 1, "repeated id": 1}
    assert [roco.peek(i).fields for i in range(3)] == [{"cuis": "C1;C2"}, {}, {}]
    assert pickle.loads(pickle.dumps(roco))[1].image == JPEG + b"d"
    with pytest.raises(UsageError, match="non-radiology"):
        open_roco(tmp_path, "valid", kind="non-radiology")


def test_parquet_that_is_not_roco(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [{"image": b"x", "caption": "y"}])
    with pytest.raises(UsageError, match=r"no column 'image.bytes'.*image, caption"):
        open_roco(tmp_path, "train")
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UsageError, match="not a sound parquet"):
        open_roco(tmp_path, "train")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"grrcoca\[parquet\]"):
        open_roco(tmp_path, "train")


@pytest.mark.parametrize(("copy", "count"), [("hf_roco", 2), ("hf_rocov2", 5)])
def test_the_hubs_real_copies(shared_data, copy, count):
    roco = open_roco(shared_data / "roco-images-mini" / copy, "train")
    assert len(roco) == count
    assert all(read_picture(roco[index].image).shape[0] in (1, 3) for index in range(count))
