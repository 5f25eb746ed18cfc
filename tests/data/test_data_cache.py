"""The decoded cache: the same pixels, never stale, bounded, shared."""

import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from grrcoca_cli.data import cache as module
from grrcoca_cli.data.base import ImageSource, Pixels
from grrcoca_cli.data.cache import CachedReader
from grrcoca_cli.data.images import fit_image
from grrcoca_cli.errors import UnreadableImage

COUNT: list[ImageSource] = []


def read(source: ImageSource) -> Pixels:
    """Pictures of 37 x 61 pixels: grey or, where the content begins with ``c``, colour; ``x`` cannot be read."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    COUNT.append(source)
    if content.startswith(b"x"):
        raise UnreadableImage("damaged")
    draw = np.random.default_rng(list(content))
    return draw.random((3 if content.startswith(b"c") else 1, 37, 61), dtype=np.float32)


def reader(folder: Path, **changed: object) -> CachedReader:
    values = {"size": 24, "fit": "letterbox", "contract": "a", "max_bytes": 10**6, **changed}
    return CachedReader(read, folder, **values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _count() -> None:
    COUNT.clear()


@pytest.mark.parametrize(("content", "step"), [(b"grey", 1 / 65535), (b"colour", 1 / 255)])
@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_the_pixels_are_those_without_a_cache(tmp_path: Path, content: bytes, step: float, fit: str) -> None:
    cached = reader(tmp_path, fit=fit)
    first, second = cached(content), cached(content)
    assert len(COUNT) == 1
    assert np.array_equal(first, second)
    plain = fit_image(read(content), 24, fit)
    assert torch.allclose(fit_image(second, 24, fit), plain, atol=step / 2 + 1e-6, rtol=0)
    assert fit_image(second, 24, fit).shape == (3, 24, 24)


def test_any_change_of_file_or_contract_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(b"grey 1")
    old = time.time() - 100
    os.utime(file, (old, old))
    cached = reader(tmp_path / "cache")
    before = cached(file)
    file.write_bytes(b"grey 2")
    os.utime(file, (old, old))  # a copy that keeps the time of another file
    after = cached(file)
    assert not np.array_equal(before, after)
    assert np.array_equal(after, reader(tmp_path / "cache")(b"grey 2"))
    assert len(COUNT) == 2
    for changed in ({"size": 20}, {"fit": "squash"}, {"contract": "b"}):
        reader(tmp_path / "cache", **changed)(file)
    assert len(COUNT) == 5


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(b"grey")
    monkeypatch.setattr(module, "_YOUNG", -1)
    cached = reader(tmp_path / "cache")
    cached(file)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read again"))
    cached(file)
    assert len(COUNT) == 1


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    cached = reader(tmp_path)
    for _ in range(2):
        with pytest.raises(UnreadableImage, match="damaged"):
            cached(b"x")
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        cached(tmp_path / "absent")
    assert len(COUNT) == 2


def test_the_bound_holds(tmp_path: Path) -> None:
    cached = reader(tmp_path, max_bytes=5000)
    for number in range(20):
        cached(b"grey %d" % number)
    entries = list(tmp_path.rglob("*.npy"))
    size = sum(entry.stat().st_size for entry in entries)
    assert 0 < size <= 5000 < size + entries[0].stat().st_size
    assert (tmp_path / "bytes").read_text() == str(size)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_entry_is_read_anew(tmp_path: Path) -> None:
    cached = reader(tmp_path)
    whole = cached(b"grey")
    (entry,) = tmp_path.rglob("*.npy")
    for damage in (b"", entry.read_bytes()[:100], b"\x80\x04pickle"):
        entry.write_bytes(damage)
        assert np.array_equal(cached(b"grey"), whole)
    assert len(COUNT) == 4


def _fill(folder: Path) -> None:
    cached = reader(folder)
    for number in range(30):
        cached(b"grey %d" % number)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_several_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    entries = list(tmp_path.rglob("*.npy"))
    assert len(entries) == 30
    assert (tmp_path / "bytes").read_text() == str(sum(entry.stat().st_size for entry in entries))
    again = pickle.loads(pickle.dumps(reader(tmp_path)))
    again(b"grey 7")
    assert COUNT == []
