"""`grrcoca prepare`: indices, CC12M's download and what came of it, any data set as shards."""

import csv
import hashlib
import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.commands.datasets import describe_cut_captions, open_split
from grrcoca_cli.commands.train import HOW_TO_GET_CC12M
from grrcoca_cli.config import DataConfig
from grrcoca_cli.data.base import ListDataset, Sample
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.data.shards import open_shards
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from medical import read_pixels


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["prepare", *map(str, words)])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def run_json(*words: object) -> tuple[int, Any]:
    code, out, _ = run(*words, "--json")
    return code, json.loads(out)


def test_its_commands_have_help_and_few_flags() -> None:
    group = typer.main.get_command(app).commands["prepare"]  # type: ignore[attr-defined]
    assert set(group.commands) == {"index", "cc12m", "shards"}
    for command in group.commands.values():
        assert command.help
        assert len(command.params) < 15


@pytest.fixture
def cc12m(shared_data: Path, tmp_path: Path) -> Path:
    """Three shards as img2dataset wrote them, and the file of addresses they come from."""
    source = shared_data / "generic-cc12m-like"
    (tmp_path / "shards").mkdir()
    for path in source.glob("cc12m/*"):
        shutil.copyfile(path, tmp_path / "shards" / path.name)
    shutil.copyfile(source / "cc12m_like.tsv", tmp_path / "cc12m.tsv")
    return tmp_path


def test_index_says_what_is_there_and_check_what_changed(cc12m: Path) -> None:
    folder = cc12m / "shards"
    code, found = run_json("index", folder)
    assert code == 0
    assert (found["shards"], found["samples"], found["usable"], found["skipped"]) == (3, 480, 480, {})
    for row in found["manifest"]:
        data = (folder / row["name"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert run_json("index", folder)[1] == found
    assert run_json("index", folder, "--check") == (0, {"schema": 1, "shards": 3, "changed": {}})
    with (folder / "00001.tar").open("r+b") as file:
        file.truncate(1000448)
    code, checked = run_json("index", folder, "--check")
    assert code == 3
    assert checked["changed"] == {str(folder / "00001.tar"): "has 1000448 bytes instead of 2959360"}
    dataset = open_shards(str(folder))
    assert len(dataset) + dataset.skipped["truncated shard"] == 480
    code, found = run_json("index", f"{folder}/{{00000..00003}}.tar")
    assert code == 3  # one is cut, and one is missing
    assert found["damaged"] == ["00001.tar"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "nowhere"], "no shard matches"),
        (["index", "nowhere", "--check"], "no index"),
        (["index", "x.npz"], "is an index"),
        (["index", "pipe:touch ran"], "never run"),
        (["index", "memory://nowhere/x.tar", "--out", "i.npz"], "not there"),
        (["index", "memory://nowhere/x.tar"], "--out"),
        (["cc12m", "nowhere.tsv", "--out", "x"], "nowhere.tsv"),
        (["shards", "--dataset", "imagenet", "--data", "x", "--out", "y"], "choose shards"),
        (["shards", "--dataset", "coco", "--data", "nowhere", "--out", "y"], "nowhere"),
    ],
)
def test_wrong_words_get_one_line(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code in (2, 3)
    assert said in out + err
    assert not list(tmp_path.iterdir())


def test_cc12m_prints_a_command_whose_table_img2dataset_reads(cc12m: Path) -> None:
    from pyarrow import csv as arrow

    path = cc12m / "cc12m.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    rows.append(["https://x.org/a.jpg", 'a "quoted" word, and "open'])
    rows.append(["https://x.org/b.jpg", '"all of it"'])
    path.write_text("".join("\t".join(row) + "\n" for row in rows) + "no address\tx\n", encoding="utf-8")
    code, found = run_json("cc12m", path, "--out", cc12m / "new")
    assert code == 0
    assert (found["rows"], found["left_out"]) == (489, 1)
    code, out, err = run("cc12m", path, "--out", cc12m / "new")
    assert shlex.split(out) == found["command"]
    assert out.startswith("img2dataset --url_list ")
    assert "489 rows" in err
    assert not (cc12m / "new").exists()  # nothing is downloaded
    table = Path(found["command"][2])
    read = arrow.read_csv(table, parse_options=arrow.ParseOptions(delimiter="\t")).to_pydict()  # as img2dataset does
    assert [list(row) for row in zip(read["url"], read["caption"], strict=True)] == rows
    again = table.read_bytes()
    path.write_bytes(again)  # with a header
    assert run_json("cc12m", path, "--out", cc12m / "new")[1]["rows"] == 489


def test_cc12m_refuses_other_files(tmp_path: Path) -> None:
    for name, text in {"empty": "", "csv": "file,caption\n1.jpg,x\n", "header": "url\tcaption\n"}.items():
        (tmp_path / name).write_text(text)
        code, out, err = run("cc12m", tmp_path / name, "--out", tmp_path / "out")
        assert (code, out) == (2, "")
        assert "rows are not an address, a tab and a caption" in err
        assert not list(tmp_path.glob("out*"))


def test_cc12m_check_counts_what_came_back(cc12m: Path) -> None:
    folder = cc12m / "shards"
    code, found = run_json("cc12m", cc12m / "cc12m.tsv", "--out", folder, "--check")
    assert code == 0
    assert (found["rows"], found["obtained"], found["usable"]) == (487, 480, 480)
    assert found["share"] == round(480 / 487, 4)
    assert sum(found["failures"].values()) == 7
    assert found["failures"]["HTTP Error 404: File not found"] == 5
    assert len(open_shards(str(folder / "grrcoca-index.npz"))) == 480

    (folder / "00001_stats.json").unlink()
    (folder / "00002.tar").unlink()
    stats = json.loads((folder / "00000_stats.json").read_text())
    (folder / "00000_stats.json").write_text(json.dumps(stats | {"successes": 161}))
    code, found = run_json("cc12m", cc12m / "cc12m.tsv", "--out", folder, "--check")
    assert code == 3
    assert (found["missing"], found["unfinished"]) == (["00002.tar"], ["00001.tar"])
    assert found["differing"] == {"00000.tar": "160 samples of 161"}


def test_cc12m_run_calls_img2dataset_if_it_is_there(cc12m: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cc12m / "bin"))
    words = ("cc12m", cc12m / "cc12m.tsv", "--out", cc12m / "shards", "--run")
    code, _, err = run(*words)
    assert code == 2
    assert "pip install img2dataset" in err
    (cc12m / "bin").mkdir()
    tool = cc12m / "bin" / "img2dataset"
    tool.write_text(f'#!/bin/sh\necho "$@" > {cc12m}/ran\n')
    tool.chmod(0o755)
    code, found = run_json(*words)
    assert (code, found["obtained"]) == (0, 480)
    assert f"--output_folder {cc12m / 'shards'}" in (cc12m / "ran").read_text()
    tool.write_text("#!/bin/sh\nexit 7\n")
    code, _, err = run(*words)
    assert code == 2
    assert "code 7" in err


def test_pretrain_names_the_command() -> None:
    assert "grrcoca prepare cc12m" in HOW_TO_GET_CC12M


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """MS-COCO's layout: 7 pictures, 5 captions each, one of them unreadable and one not there."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    names = [f"{number:012d}.jpg" for number in range(8)]
    for number, name in enumerate(names[:7]):
        Image.new("RGB", (20, 30), (number * 9, 90, 0)).save(root / "val2017" / name)
    (root / "val2017" / names[3]).write_bytes(b"\xff\xd8\xffbroken")
    document = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": number, "caption": f"caption {which} of {number}"} for number in range(8) for which in range(5)
        ],
    }
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(document))
    return root


def test_coco_comes_back_from_its_shards(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("shards", "--dataset", "coco", "--data", coco, "--split", "valid", "--out", out, "--samples-per-shard", 3)
    code, found = run_json(*words)
    assert code == 3  # one could not be read
    assert (found["shards"], found["usable"]) == (3, 6)
    assert found["left_out"] == {"rows": {"no picture": 1}, "pictures": {"damaged": 1}}
    source = open_split(DataConfig(dataset="coco", path=str(coco)), "valid")
    samples = [sample for sample in (source[number] for number in range(len(source))) if not sample.key.endswith("3")]
    dataset = open_shards(str(out))
    assert not dataset.damaged
    back = [dataset[number] for number in range(len(dataset))]
    assert [(each.key, each.captions, each.fields) for each in back] == [
        (each.key, each.captions, each.fields) for each in samples
    ]
    assert all(len(each.captions) == 5 for each in back)
    assert [each.image for each in back] == [Path(str(each.image)).read_bytes() for each in samples]

    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "00001.tar").unlink()
    (out / "00001_stats.json").unlink()
    (out / ".00001.tar.abc").touch()  # of a start that was killed
    assert run_json(*words) == (code, found)  # goes on, to the same bytes
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before
    assert not list(out.glob(".*"))


def test_shards_of_shards_are_the_same(cc12m: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, found = run_json("shards", "--dataset", "shards", "--data", cc12m / "shards" / "00000.tar", "--out", out)
    assert (code, found["usable"]) == (0, 160)
    first, second = open_shards(str(cc12m / "shards" / "00000.tar")), open_shards(str(out))
    assert [first[number] for number in range(160)] == [second[number] for number in range(160)]
    with tarfile.open(out / "00000.tar") as archive:  # as any other reader finds it
        name = archive.getnames()[1]
        assert archive.extractfile(name).read().decode().strip() == first[0].captions[0]  # type: ignore[union-attr]


def test_dicom_is_rendered_and_carries_nothing_of_its_header(phantom_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, found = run_json(
        "shards", "--dataset", "phantoms", "--data", phantom_studies, "--split", "test", "--out", out
    )
    assert (code, found["usable"]) == (0, 6)
    source = open_split(DataConfig(dataset="folder", path=str(phantom_studies)), "test")
    dataset = open_shards(str(out))
    for number in range(6):
        sample, wanted = dataset[number], source[number]
        assert (sample.captions, sample.fields) == (wanted.captions, wanted.fields)
        assert f"{sample.key}.dcm" == wanted.key
        assert isinstance(wanted.image, Path)
        pixels = read_picture(sample.image)
        assert pixels.shape == (1, 64, 64)
        np.testing.assert_allclose(pixels, read_pixels(wanted.image), atol=1 / 131070 + 1e-7)
    data = (out / "00000.tar").read_bytes()
    assert b"PHANTOM" not in data
    assert b"2.25." not in data


def test_keys_of_a_folder_are_hidden_unless_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "DoeJane"
    folder.mkdir(parents=True)
    names = ["DoeJane/1.png", "DoeJane/2.b.png"]
    with (tmp_path / "mine" / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["file", "caption", "patient"], *([name, f"caption {name[8]}", "p1"] for name in names)])
    for name in names:
        Image.new("L", (9, 9)).save(tmp_path / "mine" / name)
    words = ("shards", "--dataset", "folder", "--data", tmp_path / "mine", "--split", "all")
    assert run(*words, "--out", tmp_path / "hidden")[0] == 0
    hidden = open_shards(str(tmp_path / "hidden"))
    assert [hidden[number].captions for number in range(2)] == [("caption 1",), ("caption 2",)]
    assert b"Jane" not in b"".join(path.read_bytes() for path in (tmp_path / "hidden").iterdir())
    assert hidden[0].fields == {"patient": "p1"}
    assert run(*words, "--out", tmp_path / "kept", "--keep-keys")[0] == 0
    kept = open_shards(str(tmp_path / "kept"))
    assert [kept.key(0)[-1:], kept.key(1)[-3:]] == ["1", "2_b"]  # an archive's name ends at its first dot


def test_a_run_names_shards_that_are_not_as_indexed(cc12m: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("index", cc12m / "shards")[0] == 0
    (cc12m / "shards" / "00001.tar").unlink()
    dataset = open_split(DataConfig(dataset="shards", path=str(cc12m / "shards")), "all")
    assert len(dataset) == 320
    assert dataset.skipped == {"missing shard": 160}
    assert "00001.tar is missing: its 160 samples are left out" in capsys.readouterr().err
    many = DataConfig(dataset="shards", path=f"{cc12m}/shards/{{00000..00099}}.tar")
    open_split(many, "all")
    assert "and 88 more shards" in capsys.readouterr().err


def test_captions_beyond_the_context_are_said(tmp_path: Path) -> None:
    samples = [Sample(str(number), tmp_path / "x.jpg", ("word " * number + "end", "short")) for number in range(1, 9)]
    tokenizer = CaptionTokenizer.train(["word end short"], 300)
    said = describe_cut_captions(ListDataset(samples), tokenizer, 30)
    cut = sum(tokenizer.count(sample.captions[0]) > 30 for sample in samples)
    assert 0 < cut < 8
    assert f"{cut} of the first 16 captions are longer" in said
    assert describe_cut_captions(ListDataset(samples), tokenizer, 300) == ""


def test_a_foreign_folder_is_left_alone(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("shards", "--dataset", "coco", "--data", coco, "--split", "valid", "--out", out)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    code, _, err = run(*words)
    assert code == 2
    assert "did not write" in err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    assert run(*words)[0] == 3
    code, _, err = run(*words, "--samples-per-shard", 2)
    assert code == 2
    assert "samples_per_shard differs" in err
    (coco / "val2017" / f"{0:012d}.jpg").unlink()
    code, _, err = run(*words)
    assert code == 2
    assert "other data" in err
