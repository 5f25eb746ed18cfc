import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grrcoca_cli.commands import train as train_command
from grrcoca_cli.data import shard_remote
from grrcoca_cli.data.base import OrderedDataset, SubsetDataset
from grrcoca_cli.data.batches import batch_indices, steps_per_epoch
from grrcoca_cli.data.shard_build import build_index, changed_shards
from grrcoca_cli.data.shard_index import INDEX_NAME
from grrcoca_cli.data.shard_order import windowed_order
from grrcoca_cli.data.shard_remote import make_cache
from grrcoca_cli.data.shard_writer import write_shard
from grrcoca_cli.data.shards import ShardDataset, open_shards
from grrcoca_cli.data.splits import split_by_hash
from grrcoca_cli.errors import UnreadableImage, UsageError

SHARDS, EACH = 9, 12
BASE = "memory://bucket/cc12m"


def content(folder: Path, number: int, count: int = EACH) -> bytes:
    path = folder / "x.tar"
    stems = [f"{number:05d}{place:04d}" for place in range(count)]
    write_shard(path, [(stem, {"jpg": stem.encode() * 9, "txt": f"caption {stem}".encode()}) for stem in stems])
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A remote folder of shards, which no other process sees."""
    system = fsspec.filesystem("memory")
    for number in range(SHARDS):
        system.pipe(f"/bucket/cc12m/{number:05d}.tar", content(tmp_path, number))
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def stored(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> Path:
    places = [f"memory:///bucket/cc12m/{number:05d}.tar" for number in range(SHARDS)]
    build_index(places, tmp_path / "index.npz", processes=1)
    return tmp_path / "index.npz"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were fetched, in order."""
    names: list[str] = []
    real = shard_remote.fetch

    def fetch(address: str, target: Path) -> bool:
        names.append(address.rpartition("/")[2])
        return real(address, target)

    monkeypatch.setattr(shard_remote, "fetch", fetch)
    return names


def on_disk(dataset: ShardDataset) -> int:
    assert dataset.cache is not None
    return sum(path.suffix in (".tar", ".part") for path in dataset.cache.folder.iterdir())


def epoch(dataset: ShardDataset | SubsetDataset, number: int = 0, batch: int = 4) -> list[int]:
    steps = steps_per_epoch(len(dataset), batch)
    places = range(number * steps, (number + 1) * steps)
    return [index for step in places for index in batch_indices(len(dataset), batch, 0, step, dataset.order)]


@given(counts=st.lists(st.integers(0, 9), max_size=12), window=st.integers(1, 14), seed=st.integers(0, 2**32 - 1))
def test_a_windowed_order_is_a_permutation_of_few_shards_at_a_time(counts: list[int], window: int, seed: int) -> None:
    order = windowed_order(counts, window, np.random.RandomState(seed))
    assert sorted(order.tolist()) == list(range(sum(counts)))
    np.testing.assert_array_equal(order, windowed_order(counts, window, np.random.RandomState(seed)))
    owner = np.repeat(np.arange(len(counts)), counts)[order]
    shards = np.random.RandomState(seed).permutation(len(counts))
    place = 0
    for start in range(0, len(counts), window):
        together = shards[start : start + window]
        length = sum(counts[shard] for shard in together)
        assert set(owner[place : place + length]) <= set(together)
        place += length


def test_samples_within_a_window_are_mixed() -> None:
    order = windowed_order([500] * 8, 4, np.random.RandomState(0))
    shards = order[:2000] // 500
    assert all(400 < np.sum(shards[:1700] == shard) < 450 for shard in np.unique(shards))


def test_remote_samples_are_the_local_ones(stored: Path, bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for number in range(SHARDS):
        (local / f"{number:05d}.tar").write_bytes(bucket.cat(f"/bucket/cc12m/{number:05d}.tar"))
    expected = open_shards(str(local))
    bucket.pipe(f"/bucket/cc12m/{INDEX_NAME}", stored.read_bytes())
    for pattern in (
        str(stored),
        BASE,
        f"{BASE}/",
        f"{BASE}/*.tar",
        f"{BASE}/{{00000..00008}}.tar",
        f"{BASE}/{INDEX_NAME}",
    ):
        dataset = open_shards(pattern, window=2)
        assert [dataset[number] for number in range(len(dataset))] == [
            expected[number] for number in range(len(expected))
        ]
        assert not dataset.damaged
        assert on_disk(dataset) <= 3
    assert [sample.key for sample in (open_shards(f"{BASE}/00003.tar")[number] for number in (0, 11))] == [
        "000030000",
        "000030011",
    ]
    for part, same in zip(split_by_hash(dataset, 0.1), split_by_hash(expected, 0.1), strict=True):
        np.testing.assert_array_equal(part.indices, same.indices)


def test_an_epoch_fetches_each_shard_once_and_holds_a_window_and_one_more(stored: Path, fetched: list[str]) -> None:
    dataset = open_shards(str(stored), window=3)
    for number in range(2):
        fetched.clear()
        seen = []
        for index in epoch(dataset, number):
            seen.append(dataset[index].key)
            assert on_disk(dataset) <= 4
        assert len(set(seen)) == len(seen) == SHARDS * EACH
        assert len(fetched) <= SHARDS  # the last epoch's window may still be there
        assert len(set(fetched)) == len(fetched)
    assert epoch(dataset, 0) != epoch(dataset, 1)


@pytest.mark.parametrize("start", [0, 13, 40, 107])
def test_a_resume_reads_at_most_one_window_again(stored: Path, fetched: list[str], start: int) -> None:
    window = 3
    order = epoch(open_shards(str(stored), window=window))
    dataset = open_shards(str(stored), window=window)  # another start
    for index in order[start:]:
        dataset[index]
    left = SHARDS - start // (window * EACH) * window
    assert len(fetched) <= left


def test_a_validation_split_keeps_the_windows(stored: Path, fetched: list[str]) -> None:
    dataset = open_shards(str(stored), window=2)
    train, validation = split_by_hash(dataset, 0.3)
    some = SubsetDataset(train, np.arange(5, len(train)))
    assert isinstance(some, OrderedDataset)
    for part in (train, validation, some):
        fetched.clear()
        order = epoch(part, batch=1)
        assert sorted(order) == list(range(len(part)))
        for index in order:
            part[index]
        assert len(set(fetched)) == len(fetched)
    assert SubsetDataset(open_shards_locally(stored), np.arange(3)).order(np.random.RandomState(0)) is None


def open_shards_locally(stored: Path) -> ShardDataset:
    path = stored.with_name("00000.tar")
    path.write_bytes(content(stored.parent, 0))
    return open_shards(str(path))


def test_a_shard_that_changed_is_noticed_when_it_is_opened_or_fetched(
    stored: Path, bucket: fsspec.AbstractFileSystem, fetched: list[str], tmp_path: Path
) -> None:
    bucket.pipe("/bucket/cc12m/00001.tar", content(tmp_path, 1, count=7))
    bucket.rm("/bucket/cc12m/00002.tar")
    data = bytearray(content(tmp_path, 3))
    data[515] ^= 1
    bucket.pipe("/bucket/cc12m/00003.tar", bytes(data))
    dataset = open_shards(str(stored))
    assert len(dataset) == (SHARDS - 2) * EACH
    assert dataset.skipped == {"changed shard": EACH, "missing shard": EACH}
    assert [line.partition(" ")[0][-9:] for line in dataset.problems] == ["00001.tar", "00002.tar"]
    for index in range(len(dataset)):
        if dataset.key(index).startswith("00003"):
            with pytest.raises(UnreadableImage, match="shard changed"):
                dataset[index]
        else:
            assert dataset[index].captions == (f"caption {dataset.key(index)}",)
    assert fetched.count("00003.tar") == 1
    assert sorted(changed_shards(dataset.index, dataset.places)) == sorted(
        f"memory:///bucket/cc12m/0000{number}.tar" for number in (1, 2, 3)
    )


def test_a_network_that_fails_is_tried_again(
    stored: Path, bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_remote, "_PAUSE", 0.0)
    dataset = open_shards(str(stored), window=1)
    real, attempts = type(bucket).open, []

    def open_(*args: object, **kwargs: object) -> object:
        attempts.append(args)
        if len(attempts) in failing:
            raise ConnectionError("reset")
        return real(*args, **kwargs)

    monkeypatch.setattr(type(bucket), "open", open_)
    failing = {1, 2}
    assert dataset[0].key == "000000000"
    attempts.clear()
    failing = {1, 2, 3}
    with pytest.raises(UnreadableImage, match="shard not fetched"):
        dataset[EACH]
    attempts.clear()
    with pytest.raises(UnreadableImage, match="shard not fetched"):  # not again for each sample
        dataset[EACH + 1]
    assert not attempts
    failing = set()
    assert dataset[2 * EACH].key == "000020000"


def test_a_tokenizer_is_trained_on_a_few_shards(
    stored: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_command, "REMOTE_CAPTIONS", 2 * EACH)
    dataset = open_shards(str(stored), window=2)
    captions = list(train_command._captions(dataset, seed=0))
    assert len(set(captions)) == 2 * EACH
    assert len(fetched) == 2


def test_remote_shards_need_an_index(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"00000.tar has no index.*prepare index"):
        open_shards(BASE)
    with pytest.raises(UsageError, match="local and remote"):
        build_index([f"{BASE}/00000.tar", str(tmp_path / "x.tar")], tmp_path / "index.npz")


def test_a_temporary_cache_ends_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = make_cache("", 2)
    killed = tmp_path / "grrcoca-shards-killed"
    killed.mkdir()
    (killed / "owner.lock").touch()
    (killed / "x.tar").touch()
    again = make_cache("", 2)
    assert not killed.exists()
    assert mine.folder.exists()
    assert again.folder != mine.folder
    kept = make_cache(str(tmp_path / "given" / "folder"), 2)
    assert pickle.loads(pickle.dumps(kept)) == kept
    assert not os.listdir(kept.folder)  # noqa: PTH208


def test_processes_share_a_cache(tmp_path: Path) -> None:
    import multiprocessing

    places = []
    for number in range(5):
        path = tmp_path / f"{number:05d}.tar"
        path.write_bytes(content(tmp_path, number))
        places.append(f"file://{path}")  # fetched as from afar, and seen by other processes
    build_index(places, tmp_path / "remote.npz", processes=1)
    cache = tmp_path / "cache"
    dataset = open_shards(str(tmp_path / "remote.npz"), window=2, cache=str(cache))
    assert dataset.cache is not None
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        samples = pool.map(dataset.__getitem__, range(len(dataset)), chunksize=3)
    assert [sample.key for sample in samples] == [dataset.key(number) for number in range(len(dataset))]
    assert on_disk(dataset) <= 3
