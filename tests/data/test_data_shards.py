import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from grrcoca_cli.data.shard_build import build_index
from grrcoca_cli.data.shard_index import INDEX_NAME
from grrcoca_cli.data.shard_names import find_shards
from grrcoca_cli.data.shards import ShardDataset, open_shards
from grrcoca_cli.errors import UnreadableImage, UsageError


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def rows(*stems: str) -> dict[str, bytes]:
    members = {}
    for stem in stems:
        members[f"{stem}.jpg"] = b"picture " + stem.encode() * 200
        members[f"{stem}.json"] = json.dumps({"status": "success", "width": 7, "patient": "p1"}).encode()
        members[f"{stem}.txt"] = f" caption\tof {stem} \n".encode()
    return members


def test_real_shards_read_as_tarfile_reads_them(shared_data: Path) -> None:
    folder = shared_data / "generic-cc12m-like" / "cc12m"
    dataset = open_shards(str(folder / "{00000..00002}.tar"))
    expected = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                expected[info.name] = archive.extractfile(info).read()
    assert len(dataset) == 480
    assert not dataset.skipped
    assert not dataset.damaged
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.key == dataset.key(index)
        assert sample.image == expected[f"{sample.key}.jpg"]
        assert sample.captions == (" ".join(expected[f"{sample.key}.txt"].decode().split()),)
        assert sample.fields["url"] == json.loads(expected[f"{sample.key}.json"])["url"]
        assert dataset.peek(index).captions == sample.captions


@pytest.mark.parametrize(
    "pattern", ["../set/{00000..00001}.tar", "../set/*.tar", "../set", "../other/../set/0000*.tar"]
)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_relative_path_that_goes_up(
    pattern: str, indexed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("set", "work", "other"):
        (tmp_path / folder).mkdir()
    write_shard(tmp_path / "set" / "00000.tar", rows("a"))
    write_shard(tmp_path / "set" / "00001.tar", rows("a", "b"))
    monkeypatch.chdir(tmp_path / "work")
    if indexed:
        index = build_index(find_shards(pattern), Path("../set") / INDEX_NAME, processes=1)
        assert [record.name for record in index.records] == ["00000.tar", "00001.tar"]
        (tmp_path / "set" / "00001.tar").unlink()
    dataset = open_shards(pattern)
    assert [dataset.key(index) for index in range(len(dataset))] == ["00000/a", "00001/a", "00001/b"][
        : 1 if indexed else 3
    ]
    assert len(dataset.damaged) == indexed  # the index knows of the shard that is gone


def test_access_is_random_and_survives_pickling(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", rows("000000001", "000000000"))
    write_shard(tmp_path / "00001.tar", rows("000010000"))
    dataset = pickle.loads(pickle.dumps(open_shards(str(tmp_path))))
    assert [dataset.key(index) for index in range(3)] == ["000000001", "000000000", "000010000"]
    for index in (2, 0, 1, 2):
        sample = dataset[index]
        assert sample.image == rows(sample.key)[f"{sample.key}.jpg"]
        assert sample.captions == (f"caption of {sample.key}",)
        assert sample.fields == {"status": "success", "width": "7", "patient": "p1"}
        assert dataset.peek(index).image == b""


def test_patterns(tmp_path: Path) -> None:
    for number in range(8, 12):
        write_shard(tmp_path / f"{number:05d}.tar", rows(f"{number:09d}"))
    everything = [f"{number:09d}" for number in range(8, 12)]

    def keys(pattern: str | list[str]) -> list[str]:
        dataset = open_shards(pattern)
        return [dataset.key(index) for index in range(len(dataset))]

    assert keys(str(tmp_path)) == everything
    assert keys(f"{tmp_path}/*.tar") == everything
    assert keys(f"{tmp_path}/{{00008..00011}}.tar") == everything
    assert keys(f"{tmp_path}/000{{11,08}}.tar") == [everything[3], everything[0]]
    assert keys(f"{tmp_path}/00{{0..0}}{{08,1{{0,1}}}}.tar") == [everything[0], *everything[2:]]
    assert keys([f"{tmp_path}/00009.tar", f"{tmp_path}/*9.tar"]) == [everything[1]]
    assert keys(f"{tmp_path}/0000[89].tar") == everything[:2]


def test_a_shard_that_a_brace_names_and_is_not_there_is_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", rows("a"))
    dataset = open_shards(f"{tmp_path}/{{00000..00002}}.tar")
    assert len(dataset) == 1
    assert dataset.skipped == {"missing shard": 2}
    assert dataset.damaged == [f"{tmp_path}/00001.tar", f"{tmp_path}/00002.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        *("none-{0..2}.tar", "*.tar", "x.tar", "x.npz", "pipe:touch ran", "pipe:curl http://localhost/0.tar"),
        *("nosuch://bucket/0.tar", "simplecache::http://localhost/0.tar", "memory://nowhere/*.tar", "memory://nowhere"),
    ],
)
def test_no_shard_is_a_usage_error_and_nothing_runs(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refusal:
        open_shards(pattern)
    assert pattern in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_stem_in_several_shards_gets_the_shard_s_name(tmp_path: Path) -> None:
    for name in ("cc12m-train-0000", "cc12m-train-0001"):
        write_shard(tmp_path / f"{name}.tar", rows("00000000"))
    dataset = open_shards(f"{tmp_path}/cc12m-train-{{0000..0001}}.tar")
    assert [dataset.key(index) for index in range(2)] == ["cc12m-train-0000/00000000", "cc12m-train-0001/00000000"]
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "cc12m-train-0000.tar", rows("00000000"))
    both = open_shards([f"{tmp_path}/cc12m-train-0000.tar", f"{tmp_path}/other/cc12m-train-0000.tar"])
    assert [both.key(index) for index in range(2)] == ["cc12m-train-0000/00000000", "other/cc12m-train-0000/00000000"]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    members = {
        **rows("good"),
        "failed.json": b'{"status": "failed_to_download", "caption": "x"}',
        "failed2.jpg": b"p",
        "failed2.txt": b"x",
        "failed2.json": b'{"status": "failed_to_resize"}',
        "bare.txt": b"a caption alone",
        "blank.jpg": b"p",
        "blank.txt": " \u00a0\n".encode(),
        "dumb.png": b"p",
        "fromjson.webp": b"p",
        "fromjson.json": b'{"caption": "out of <PERSON>\'s json", "similarity": 0.5, "exif": {}, "error": null}',
        "damagedjson.JPEG": b"p",
        "damagedjson.json": b"[" * 100_000,
        "damagedjson.txt": b"caf\xe9",
        "./dot/slash.jpg": b"p",
        "./dot/slash.txt": b"in a folder",
        "._good.jpg": b"resource fork",
        "bad.pyd": b"cos\nsystem\n(S'touch ran'\ntR.",
        "README": b"",
    }
    dataset = open_shards(str(write_shard(tmp_path / "x.tar", members)))
    samples = [dataset[index] for index in range(len(dataset))]
    assert {sample.key: sample.captions[0] for sample in samples} == {
        "good": "caption of good",
        "fromjson": "out of <PERSON>'s json",
        "damagedjson": "caf\ufffd",
        "dot/slash": "in a folder",
    }
    assert samples[1].fields == {"similarity": "0.5"}
    assert dataset.skipped == {"failed download": 2, "no picture": 1, "empty caption": 2}
    assert not dataset.damaged


def test_a_member_that_is_there_twice_is_counted(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", rows("a"))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    dataset = open_shards(str(path))
    assert dataset[0].image == rows("a")["a.jpg"]
    assert dataset.skipped == {"duplicate member": 1}


def test_a_shard_without_usable_samples_is_a_usage_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", {"a.txt": b"caption"})
    with pytest.raises(UsageError, match=r"no usable sample .* 1 no picture"):
        open_shards(str(path))


@pytest.mark.parametrize("with_statistics", [True, False])
def test_no_cut_loses_a_sample_silently(tmp_path: Path, with_statistics: bool) -> None:
    names = ["a", "b", "c"]
    data = write_shard(tmp_path / "whole.tar", rows(*names)).read_bytes()
    end = _end_of_archive(tmp_path / "whole.tar")
    keep, path = write_shard(tmp_path / "keep.tar", rows("kept")), tmp_path / "cut.tar"
    if with_statistics:
        (tmp_path / "cut_stats.json").write_text(json.dumps({"successes": len(names)}), encoding="utf-8")
    for length in range(0, end, 512):
        path.write_bytes(data[:length])
        dataset = open_shards([str(keep), str(path)])
        read = [dataset[index] for index in range(1, len(dataset))]
        for sample, name in zip(read, names, strict=False):  # whole samples, in order
            assert (sample.key, sample.image) == (name, rows(name)[f"{name}.jpg"])
            assert sample.captions == (f"caption of {name}",)
        assert len(read) == _whole_before(tmp_path / "whole.tar", length)
        assert dataset.damaged == [str(path)]
        if with_statistics:
            assert len(read) + dataset.skipped.total() == len(names)
        else:
            assert dataset.skipped["truncated shard"] >= 1
    path.write_bytes(data[:end])
    assert not open_shards([str(keep), str(path)]).damaged


def _end_of_archive(path: Path) -> int:
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    return -(-(last.offset_data + last.size) // 512) * 512 + 1024


def _whole_before(path: Path, length: int) -> int:
    with tarfile.open(path) as archive:
        return sum(info.name.endswith(".txt") and info.offset_data + info.size <= length for info in archive)


def test_a_shard_that_changes_gives_one_unreadable_sample(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", rows("a", "b"))
    dataset = open_shards(str(path))
    os.truncate(path, 600)
    assert dataset.key(1) == "b"
    with pytest.raises(UnreadableImage, match="shard changed"):
        dataset[1]
    path.unlink()
    with pytest.raises(UnreadableImage, match="shard changed"):
        dataset[0]


def test_the_index_is_compact(tmp_path: Path) -> None:
    members = {name: b"x" for number in range(500) for name in (f"{number:09d}.jpg", f"{number:09d}.txt")}
    dataset = open_shards(str(write_shard(tmp_path / "x.tar", members)))
    assert isinstance(dataset, ShardDataset)
    assert len(pickle.dumps(dataset)) < 64 * 500
