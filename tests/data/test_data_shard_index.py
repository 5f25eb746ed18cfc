import io
import json
import os
import pickle
import re
import resource
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from grrcoca_cli.data import shard_build
from grrcoca_cli.data.shard_build import build_index, changed_shards
from grrcoca_cli.data.shard_index import INDEX_NAME, ShardIndex, load_index, verify_index
from grrcoca_cli.data.shard_writer import shard_key, write_shard
from grrcoca_cli.data.shards import ShardDataset, open_shards
from grrcoca_cli.data.splits import split_by_hash
from grrcoca_cli.errors import UnreadableImage, UsageError


def members(stem: str) -> dict[str, bytes]:
    info = {"status": "success", "patient": "p1"}
    return {
        "jpg": b"picture " + stem.encode() * 150,
        "json": json.dumps(info).encode(),
        "txt": f"caption of {stem}".encode(),
    }


def shard(path: Path, *stems: str) -> Path:
    write_shard(path, [(stem, members(stem)) for stem in stems])
    return path


def index(folder: Path, processes: int = 1) -> ShardIndex:
    return build_index(sorted(map(str, folder.glob("*.tar"))), folder / INDEX_NAME, processes=processes)


def captions(dataset: ShardDataset) -> dict[str, str]:
    return {sample.key: sample.captions[0] for sample in map(dataset.__getitem__, range(len(dataset)))}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, stems in enumerate(("abc", "def", "gh")):
        shard(tmp_path / f"{number:05d}.tar", *stems)
    return tmp_path


def test_with_an_index_no_shard_is_scanned_and_the_samples_are_the_same(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = open_shards(str(three))
    index(three)
    monkeypatch.setattr("grrcoca_cli.data.shard_check.scan_shard", lambda path: 1 / 0)
    patterns = (f"{three}", f"{three}/*.tar", f"{three}/{{00000..00002}}.tar", f"{three}/{INDEX_NAME}")
    for dataset in map(open_shards, patterns):
        assert [dataset[number] for number in range(8)] == [without[number] for number in range(8)]
        assert dataset.rows is None  # the mapped arrays themselves
        assert not dataset.damaged
        assert len(pickle.dumps(dataset)) < 2000
        assert captions(pickle.loads(pickle.dumps(dataset))) == captions(without)
    assert list(captions(open_shards(f"{three}/0000{{2,0}}.tar"))) == list("ghabc")
    assert list(captions(open_shards([f"{three}/00001.tar", f"{three}/00001.tar"]))) == list("def")


def test_the_index_may_move_with_its_shards_and_may_lie_elsewhere(
    three: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    build_index(sorted(map(str, three.glob("*.tar"))), elsewhere / "index.npz", processes=1)
    assert list(captions(open_shards(str(elsewhere / "index.npz")))) == list("abcdefgh")
    index(three)
    moved = elsewhere / "moved"
    three.rename(moved)
    dataset = open_shards(str(moved))
    assert list(captions(dataset)) == list("abcdefgh")
    assert not dataset.damaged
    dataset = open_shards(str(moved / INDEX_NAME))
    assert dataset.places == sorted(map(str, moved.glob("*.tar")))


def test_two_processes_give_the_same_index_as_one(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_build, "_WORTH_A_PROCESS", 0)
    alone = index(three)
    content = {name: array.tolist() for name, array in alone.arrays._asdict().items()}
    (three / INDEX_NAME).unlink()
    both = index(three, processes=2)
    assert both.records == alone.records
    assert {name: array.tolist() for name, array in both.arrays._asdict().items()} == content
    assert not list(three.glob(".*"))


def test_an_interrupted_sitting_is_gone_on_with_and_only_changes_are_read(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = shard_build.scan_shard

    def scan(path: Path) -> object:
        if len(read) == 2 and stop:
            raise KeyboardInterrupt
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(shard_build, "scan_shard", scan)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        index(three)
    assert not (three / INDEX_NAME).exists()
    stop = False
    whole = index(three)
    assert read == ["00000.tar", "00001.tar", "00002.tar"]
    assert index(three).records == whole.records
    assert len(read) == 3
    shard(three / "00001.tar", "x", "y")
    shard(three / "00003.tar", "z")
    index(three)
    assert read[3:] == ["00001.tar", "00003.tar"]
    assert list(captions(open_shards(str(three)))) == list("abcxyghz")


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(list(Path("/dev/fd").iterdir()))
    for number in range(80):
        shard(tmp_path / f"{number:05d}.tar", f"{number:05d}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 60, limits[1]))
    try:
        index(tmp_path)
        assert len(open_shards(str(tmp_path))) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_every_cut_is_noticed_and_every_sample_accounted_for(tmp_path: Path) -> None:
    keep, path = shard(tmp_path / "keep.tar", "kept"), tmp_path / "cut.tar"
    failed = {"json": b'{"status": "failed_to_download"}'}
    rows = [("a", members("a")), ("f", failed), ("b", members("b")), ("e", {"jpg": b"p", "txt": b" "})]
    write_shard(path, [*rows, ("c", {"png": b"x" * 1300, "txt": b"caption of c"}), ("d", members("d"))])
    whole = index(tmp_path)
    record = whole.records[0]
    assert (record.samples, record.usable, record.skipped) == (6, 4, {"failed download": 1, "empty caption": 1})
    data = path.read_bytes()
    seen = set()
    for length in range(0, len(data), 512):
        path.write_bytes(data[:length])
        dataset = open_shards(str(tmp_path))
        read = captions(dataset)
        assert read == {stem: f"caption of {stem}" for stem in read}
        assert list(read) == [*"abcd"[: len(read) - 1], "kept"]
        assert len(read) - 1 + dataset.skipped.total() == record.samples
        assert dataset.damaged == [str(path)]
        assert f"has {length} bytes instead of {len(data)}" in dataset.problems[0]
        assert len(read) - 1 == _whole_before(data, length, "abcd")
        seen.add(len(read))
    assert seen == {1, 2, 3, 4, 5}
    path.write_bytes(data)
    assert not open_shards(str(tmp_path)).damaged
    assert open_shards([str(keep)]).skipped == {}


def _whole_before(data: bytes, length: int, stems: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        ends = {info.name: info.offset_data + info.size for info in archive}
    return sum(all(end <= length for name, end in ends.items() if name.startswith(f"{stem}.")) for stem in stems)


def test_a_shard_that_changed_is_not_read(three: Path) -> None:
    index(three)
    path = three / "00001.tar"
    data = bytearray(path.read_bytes())
    os.utime(path, ns=(0, 0))
    assert not open_shards(str(three)).damaged  # a copy, say: another time, the same content
    data[700] ^= 1
    path.write_bytes(data)
    for change in ("one bit", "longer"):
        if change == "longer":
            path.write_bytes(bytes(data) + bytes(512))
        dataset = open_shards(str(three))
        assert list(captions(dataset)) == list("abcgh")
        assert dataset.skipped == {"changed shard": 3}
        assert dataset.damaged == [str(path)]
        assert "its 3 samples are left out" in dataset.problems[0]


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{00000..00002}.tar", f"/{INDEX_NAME}"])
def test_a_shard_that_is_gone_is_counted_by_the_index(three: Path, pattern: str) -> None:
    index(three)
    (three / "00001.tar").unlink()
    dataset = open_shards(f"{three}{pattern}")
    assert list(captions(dataset)) == list("abcgh")
    assert dataset.skipped == {"missing shard": 3}
    assert dataset.damaged == [str(three / "00001.tar")]
    assert "is missing: its 3 samples are left out" in dataset.problems[0]


def test_shards_without_index_stand_beside_those_with(three: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    index(three)
    shard(three / "00003.tar", "i")
    other = shard(tmp_path_factory.mktemp("other") / "x.tar", "a")
    dataset = open_shards(str(three))
    assert list(captions(dataset)) == list("abcdefghi")
    both = open_shards([str(three / "00000.tar"), str(other)])
    assert [key.rpartition("/")[2] for key in captions(both)] == ["a", "b", "c", "a"]
    assert len(set(captions(both))) == 4


def test_keys_and_splits_are_those_without_an_index(three: Path) -> None:
    for number in (3, 4):
        shard(three / f"{number:05d}.tar", *(f"{each:04d}" for each in range(200)))  # the same stems twice
    without = open_shards(str(three))
    keys = [without.key(number) for number in range(len(without))]
    assert keys[0] == "00000/a"
    index(three)
    dataset = open_shards(str(three))
    assert [dataset.key(number) for number in range(len(dataset))] == keys
    few = open_shards(f"{three}/{{00004,00000}}.tar")
    assert few.hash_draws() is not None
    assert without.hash_draws() is None
    for part, same in zip(split_by_hash(dataset, 0.3), split_by_hash(without, 0.3), strict=True):
        np.testing.assert_array_equal(part.indices, same.indices)
    held_out = {few.key(number) for number in split_by_hash(few, 0.3)[1].indices}
    assert held_out == {keys[number] for number in split_by_hash(dataset, 0.3)[1].indices} & {
        few.key(number) for number in range(len(few))
    }


def test_full_check_finds_what_size_and_time_do_not_tell(three: Path) -> None:
    path = three / "00001.tar"
    shard(path, *(f"{number:03d}" for number in range(300)))
    whole = index(three)
    places = sorted(map(str, three.glob("*.tar")))
    assert changed_shards(whole, places) == {}
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 31] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed_shards(whole, places) == {str(path): "has another sha256"}
    path.unlink()
    assert changed_shards(whole, places) == {str(path): "is missing"}


def test_a_damaged_index_is_refused(three: Path) -> None:
    index(three)
    path = three / INDEX_NAME
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match=r"damaged.*prepare index"):
            open_shards(str(three))
    np.savez(path, manifest=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="damaged"):
        load_index(path)
    path.write_bytes(data)
    verify_index(path)
    place = data.index(load_index(path).arrays.offsets.tobytes())
    path.write_bytes(data[:place] + b"\x7f" + data[place + 1 :])
    with pytest.raises(UsageError, match="damaged"):
        verify_index(path)


def test_an_index_written_anew_does_not_mix_with_an_old_one(three: Path) -> None:
    index(three)
    copy = pickle.dumps(open_shards(str(three)))
    time.sleep(0.01)
    shard(three / "00009.tar", "z")
    index(three)
    with pytest.raises(UsageError, match="written anew"):
        pickle.loads(copy)


def test_a_shard_that_is_replaced_while_it_is_read_is_never_read_as_another(three: Path) -> None:
    index(three)
    dataset = open_shards(str(three))
    assert dataset[0].key == "a"
    shard(three / "new", "x", "y", "z").replace(three / "00000.tar")
    assert dataset[1].captions == ("caption of b",)  # of the file that is open
    shard(three / "new", "x", "y", "z").replace(three / "00001.tar")
    with pytest.raises(UnreadableImage, match="shard changed"):
        dataset[3]


def test_captions_of_the_json_come_before_the_text(tmp_path: Path) -> None:
    def row(info: object) -> dict[str, bytes]:
        return {"jpg": b"p", "txt": b"text", "json": json.dumps(info).encode()}

    infos = {
        "several": {"captions": [" one", "", 7, "two <PERSON>"], "caption": "three", "n": 1},
        "none": {"captions": []},
        "odd": {"captions": "x", "caption": ["y"]},
        "status": {"status": "final", "caption": "three"},
    }
    write_shard(tmp_path / "x.tar", [(stem, row(info)) for stem, info in infos.items()])
    dataset = open_shards(str(tmp_path))
    assert [sample.captions for sample in map(dataset.__getitem__, range(4))] == [
        ("one", "two <PERSON>"),
        ("text",),
        ("text",),
        ("text",),
    ]
    assert [dataset.peek(number).fields for number in range(4)] == [
        {"n": "1"},
        {},
        {"captions": "x"},
        {"status": "final"},
    ]


def test_a_key_that_is_too_long_is_counted(tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", "a", "long" * 64)
    dataset = open_shards(str(tmp_path))
    assert list(captions(dataset)) == ["a"]
    assert dataset.skipped == {"name too long": 1}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("000000001", "000000001"),
        ("train/PMC1_f-2.jpg", "train/PMC1_f-2"),
        ("a.b/c.d.dcm", "a_b/c_d"),
        ("../../evil", "__/__/evil"),
        *((key, None) for key in ("/evil", "", "a//b", "a b", "x" * 91, "a\n", "pipe:x", "\udcff")),
    ],
)
def test_keys_become_names_that_leave_no_folder(key: str, name: str | None) -> None:
    made = shard_key(key, hidden=False)
    assert made == name if name else re.fullmatch("[0-9a-f]{24}", made)
    assert re.fullmatch("[0-9a-f]{24}", shard_key(key, hidden=True))


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def hostile_members(ran: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    payload = pickle.dumps(Payload(ran))
    good = {"x.jpg": b"picture", "x.txt": b"a caption"}
    bad = {f"x.{extension}": payload for extension in ("pyd", "pkl", "pt", "pth", "npy", "cls", "json", "pickle")}
    leaving = {
        f"{name}.{extension}": b"evil"
        for name in ("../../evil", "/evil", "a/../../evil")
        for extension in ("jpg", "txt")
    }
    for name, data in {**good, **bad, **leaving}.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        yield info, data
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ):
        for extension in ("jpg", "txt"):
            info = tarfile.TarInfo(f"link{number}.{extension}")
            info.type, info.linkname = kind, "/etc/passwd"
            yield info, b""


def test_nothing_in_a_shard_is_run_followed_or_written(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "x.tar", "w") as archive:
        for info, data in hostile_members(tmp_path / "ran"):
            archive.addfile(info, io.BytesIO(data))
    index(folder)
    before = sorted(tmp_path.rglob("*"))
    dataset = open_shards(str(folder))
    samples = [dataset[number] for number in range(len(dataset))]
    assert {sample.key: sample.image for sample in samples} == {
        "x": b"picture",
        "../../evil": b"evil",  # a name, and no more than that
        "/evil": b"evil",
        "a/../../evil": b"evil",
    }
    assert dataset.skipped == {}  # links and devices are no members
    assert sorted(tmp_path.rglob("*")) == before
