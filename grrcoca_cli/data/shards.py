"""Webdataset tar shards, as img2dataset writes CC12M, read at random by an index of where every sample's bytes are."""

import functools
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import Sample
from grrcoca_cli.data.shard_check import Found, check_shards
from grrcoca_cli.data.shard_index import ShardIndex, join
from grrcoca_cli.data.shard_lookup import look_up
from grrcoca_cli.data.shard_names import common_parent, is_remote, name_below
from grrcoca_cli.data.shard_order import windowed_order
from grrcoca_cli.data.shard_remote import WindowCache, make_cache
from grrcoca_cli.data.shard_scan import ABSENT, JSON, PICTURE, TEXT, captions_of, fields_of, parse_info
from grrcoca_cli.errors import UnreadableImage, UsageError

_OPEN_FILES = 128


@dataclass(frozen=True, eq=False)
class ShardDataset:
    """The usable samples of many shards, in the order of shards and of their pictures within.

    Attributes:
        index: Where samples are, of these shards or of more.
        places: Path or address of each of the index's shards.
        statuses: Bytes and time of change of these files when the set was opened; remote ones, as the index has them.
        rows: Rows of the index that the samples are, (length,) int64; None for all of them.
        skipped: Unusable samples by kind; ``"truncated shard"`` counts the samples that are known to be lost, at least
            one a shard.
        damaged: Shards that are cut, damaged, changed or missing.
        problems: A line about each of them for a person.
        cache: Where remote shards come; None where all are local.
    """

    index: ShardIndex
    places: list[str]
    statuses: list[tuple[int, int]]
    rows: NDArray[np.int64] | None
    skipped: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cache: WindowCache | None = None

    def __len__(self) -> int:
        return len(self.index) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self._read(index, with_picture=True)

    def key(self, index: int) -> str:
        """The member's name without extension, after the shard's name where the same one is in several shards."""
        return self.index.key(self._row(index))

    def peek(self, index: int) -> Sample:
        """The sample without its picture's bytes."""
        return self._read(index, with_picture=False)

    def hash_draws(self) -> NDArray[np.float64] | None:
        """The numbers that `splits.split_by_hash` goes by, where the index holds them."""
        draws = self.index.arrays.draws
        if len(draws) != len(self.index):
            return None
        return np.asarray(draws) if self.rows is None else draws[self.rows]

    def order(self, generator: np.random.RandomState) -> NDArray[np.int64] | None:
        """The samples of an epoch, for `base.OrderedDataset`: shards at random, then samples within windows of them.

        None where all shards are local: there any order costs the same.
        """
        if self.cache is None:
            return None
        firsts = self.index.firsts
        if self.rows is not None:  # rows of one shard lie side by side
            numbers = np.searchsorted(np.array(firsts), self.rows, side="right")
            firsts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        return windowed_order(np.diff(firsts), self.cache.limit - 1, generator)

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return index if self.rows is None else int(self.rows[index])

    def _read(self, index: int, with_picture: bool) -> Sample:
        row = self._row(index)
        offsets, sizes = self.index.arrays.offsets[row].tolist(), self.index.arrays.sizes[row].tolist()
        try:
            with self._opened(bisect_right(self.index.firsts, row) - 1) as handle:
                picture, text, info = (
                    _pread(handle, sizes[column], offsets[column])
                    if offsets[column] != ABSENT and (with_picture or column != PICTURE)
                    else b""
                    for column in (PICTURE, TEXT, JSON)
                )
        except OSError as error:
            raise UnreadableImage("shard changed") from error
        about = parse_info(info) if info else {}
        captions = captions_of(text, about)
        if not captions:
            raise UnreadableImage("shard changed")  # when it was indexed, it had one
        return Sample(self.index.key(row), picture, captions, fields_of(about))

    @contextmanager
    def _opened(self, number: int) -> Iterator[int]:
        """A descriptor of one of the shards, the same as when the set was opened."""
        place, (size, changed) = self.places[number], self.statuses[number]
        if self.cache is not None:
            with self.cache.open(place, size, self.index.records[number].sha256) as file:
                yield file.fileno()
        else:
            handle = _open(place, size, changed)
            yield handle.number


def open_shards(pattern: str | Sequence[str], *, window: int = 8, cache: str = "") -> ShardDataset:
    """The samples of the shards that ``pattern`` names.

    With an index (`shard_index.INDEX_NAME` beside the shards or one folder up) nothing but the shards' sizes is looked
    at; without, headers and captions of local shards are read, no pictures.

    Args:
        pattern: One or more of: a file, a folder of ``.tar`` files, a glob, braces (``{00000..01242}``, ``{a,b}``), one
            of these as an address that fsspec opens, or an index (``.npz``), which stands for all its shards.
        window: Remote shards that are mixed with each other, and one fewer than lie on the disk.
        cache: Folder for fetched shards; empty for a temporary one that ends with this process.

    Raises:
        UsageError: No shard is there, no sample in them can be used, an index is damaged, or remote shards have none.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    shown = " ".join(patterns)
    remote = any(map(is_remote, patterns))
    store = make_cache(cache, window) if remote else None
    wanted = look_up(patterns, store)
    if not remote and any(map(is_remote, wanted)):  # a local index of remote shards
        store = make_cache(cache, window)
    found = check_shards(wanted)
    present = [each for each in found if each.index is not None]
    if not any(each.present for each in found):
        raise UsageError(f"no shard matches {shown!r}: expected .tar files as img2dataset writes them")
    skipped = sum((each.skipped for each in found), Counter[str]())
    index, places, statuses, rows = _select(present)
    if not (len(index) if rows is None else len(rows)):
        counts = ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "they are empty"
        raise UsageError(f"no usable sample in the {len(found)} shards of {shown!r}: {counts}")
    return ShardDataset(
        index=index,
        places=places,
        statuses=statuses,
        rows=rows,
        skipped=skipped,
        damaged=[each.place for each in found if each.problem],
        problems=[each.problem for each in found if each.problem],
        cache=store,
    )


def _select(
    found: Sequence[Found],
) -> tuple[ShardIndex, list[str], list[tuple[int, int]], NDArray[np.int64] | None]:
    """One index for all shards, with place and status of each, and the rows of it that are used; None for all."""
    first = found[0].index
    assert first is not None
    if all(each.index is first for each in found):
        index, numbers = first, [each.number for each in found]
    else:
        base = common_parent([each.place for each in found])
        pieces = [
            each.index.piece(each.number, name_below(each.place, base)) for each in found if each.index is not None
        ]
        index, numbers = join(pieces), list(range(len(found)))
    places, statuses = [""] * len(index.records), [(0, 0)] * len(index.records)
    for number, each in zip(numbers, found, strict=True):
        places[number], statuses[number] = each.place, each.status
    if numbers == list(range(len(index.records))) and all(each.kept is None for each in found):
        return index, places, statuses, None
    chosen = [
        np.arange(*index.firsts[number : number + 2]) if each.kept is None else index.firsts[number] + each.kept
        for number, each in zip(numbers, found, strict=True)
    ]
    return index, places, statuses, np.concatenate(chosen)


class _Handle:
    """An open file that is closed when nobody holds it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@functools.lru_cache(maxsize=_OPEN_FILES)  # of this process: a copy of the set in another one opens its own
def _open(place: str, size: int, changed: int) -> _Handle:
    handle = _Handle(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
    status = os.fstat(handle.number)
    if (status.st_size, status.st_mtime_ns) != (size, changed):
        raise OSError("another file than the one that was opened first")
    return handle


def _pread(handle: int, size: int, offset: int) -> bytes:
    data = os.pread(handle, size, offset)
    while len(data) < size:  # a signal, or a network file system's limit
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            raise OSError("the file became shorter")
        data += more
    return data
