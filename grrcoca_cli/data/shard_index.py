"""The index of a set of shards: a manifest, and plain arrays that say where every sample's bytes are.

On disk it is one ``.npz``, not compressed and without pickles. Its arrays are mapped, not loaded: 12 million samples
open at once, and the processes of a machine share one copy of what they touch.
"""

import json
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.shard_scan import ScannedShard
from grrcoca_cli.data.splits import hash_draws
from grrcoca_cli.errors import UsageError
from grrcoca_cli.files import open_atomically

INDEX_NAME = "grrcoca-index.npz"
"""Name of the index that lies beside its shards."""

_FORMAT = 1


@dataclass(frozen=True)
class ShardRecord:
    """One shard's line of the manifest.

    Attributes:
        name: Path below the index's base, with slashes.
        bytes: Its size.
        mtime_ns: When it was last changed, in nanoseconds; 0 where that is not known (a remote shard).
        sha256: Of the file, hexadecimal.
        probe: Hash of blocks spread over the file, for a check that costs little.
        usable: Samples that can be read.
        skipped: The other samples, by kind.
        damaged: It was cut or damaged when it was indexed.
    """

    name: str
    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    probe: str = ""
    usable: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    damaged: bool = False

    @property
    def samples(self) -> int:
        """All samples of the shard, usable and not."""
        return self.usable + sum(self.skipped.values())


class Arrays(NamedTuple):
    """A row a usable sample, in the order of shards; as in `ScannedShard`.

    Attributes:
        stems: Keys within a shard, UTF-8, (length,).
        offsets: (length, 3) int64.
        sizes: (length, 3) uint32.
        draws: Each key's number in [0, 1) that `splits.split_by_hash` goes by, (length,) float64.
    """

    stems: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    draws: NDArray[np.float64]


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of some shards are.

    Attributes:
        records: The manifest, a line a shard.
        arrays: Of all shards, one after another.
        unique: No stem is there twice, so that it needs no shard's name in front of it.
        base: Folder or address that names are below; empty for the folder of the index file itself.
        path: The file the arrays are mapped from; None where they are in memory.
        stamp: Size and time of change of that file.
    """

    records: tuple[ShardRecord, ...]
    arrays: Arrays
    unique: bool
    base: str = ""
    path: Path | None = None
    stamp: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.arrays.stems)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the same file, instead of carrying its arrays along."""
        if self.path is not None:
            return _load_same, (self.path, self.stamp)
        return ShardIndex, (self.records, self.arrays, self.unique, self.base)

    @cached_property
    def firsts(self) -> list[int]:
        """The row at which each shard starts, and the count of rows at the end: one more than there are shards."""
        return [0, *np.cumsum([record.usable for record in self.records]).tolist()]

    def rows_of(self, number: int) -> slice:
        """The rows of one shard."""
        return slice(self.firsts[number], self.firsts[number + 1])

    def key(self, row: int) -> str:
        """A sample's key: its stem, after the shard's name where stems repeat."""
        record = self.records[0 if self.unique else bisect_right(self.firsts, row) - 1]
        return _key(record, self.arrays.stems[row], self.unique).decode()

    def copied(self) -> "ShardIndex":
        """The same in memory: a mapped file takes four descriptors."""
        stems, offsets, sizes, draws = self.arrays
        arrays = Arrays(np.array(stems), np.array(offsets), np.array(sizes), np.array(draws))
        return ShardIndex(self.records, arrays, self.unique, self.base)

    def piece(self, number: int, name: str = "") -> "ShardIndex":
        """The index of one of the shards, perhaps under another ``name``."""
        rows, record = self.rows_of(number), self.records[number]
        stems, offsets, sizes, draws = self.arrays
        arrays = Arrays(stems[rows], offsets[rows], sizes[rows], draws[rows])
        return ShardIndex((replace(record, name=name or record.name),), arrays, self.unique, self.base)


def index_of(record: ShardRecord, scanned: ScannedShard) -> ShardIndex:
    """An index of one shard that was just scanned; its draws are made when it is joined to the others."""
    arrays = Arrays(scanned.stems, scanned.offsets, scanned.sizes, np.empty(0))
    return ShardIndex((record,), arrays, unique=True)


def join(pieces: Sequence[ShardIndex], base: str = "", *, with_draws: bool = False) -> ShardIndex:
    """One index of all shards of ``pieces``, in memory; ``with_draws`` takes a second a million samples."""
    records = tuple(record for piece in pieces for record in piece.records)
    stems, offsets, sizes = (np.concatenate([piece.arrays[column] for piece in pieces]) for column in range(3))
    unique = len(np.unique(stems)) == len(stems)
    whole = ShardIndex(records, Arrays(stems, offsets, sizes, np.empty(0)), unique, base)
    if not with_draws:
        return whole
    names = (
        _key(record, stem, unique)
        for number, record in enumerate(records)
        for stem in stems[whole.rows_of(number)].tolist()
    )
    return ShardIndex(records, Arrays(stems, offsets, sizes, hash_draws(names)), unique, base)


def _key(record: ShardRecord, stem: bytes, unique: bool) -> bytes:
    return stem if unique else record.name.removesuffix(".tar").encode() + b"/" + stem


def save_index(index: ShardIndex, path: Path) -> None:
    """Write an index, whole or not at all.

    Raises:
        OutOfResources: The disk is full.
        UsageError: The folder cannot be written to.
    """
    manifest = {
        "format": _FORMAT,
        "base": index.base,
        "unique": index.unique,
        "shards": [asdict(record) for record in index.records],
    }
    text = np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)
    with open_atomically(path) as file:
        np.savez(file, manifest=text, **index.arrays._asdict())


def load_index(path: Path) -> ShardIndex:
    """Map an index that `save_index` wrote.

    Raises:
        UsageError: It is missing, cut, or not an index.
    """
    try:
        path = path.absolute()
        stamp = (path.stat().st_size, path.stat().st_mtime_ns)
        found = _map_arrays(path)
        manifest = json.loads(found.pop("manifest").tobytes())
        if manifest["format"] != _FORMAT:
            raise UsageError(f"{path} is an index of another version of grrcoca: run `grrcoca prepare index` again")
        known = {each.name for each in fields(ShardRecord)}
        records = tuple(ShardRecord(**{name: row[name] for name in row.keys() & known}) for row in manifest["shards"])
        index = ShardIndex(records, Arrays(**found), bool(manifest["unique"]), str(manifest["base"]), path, stamp)
        length = index.firsts[-1]
        if [array.shape for array in index.arrays] not in (
            [(length,), (length, 3), (length, 3), (length,)],
            [(length,), (length, 3), (length, 3), (0,)],
        ) or [array.dtype.kind for array in index.arrays] != ["S", "i", "u", "f"]:
            raise ValueError("arrays do not fit the manifest")
    except FileNotFoundError as error:
        raise UsageError(f"no index at {path}: `grrcoca prepare index SHARDS` writes one") from error
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        *(struct.error, zipfile.BadZipFile),
    ) as error:
        raise UsageError(f"{path} is damaged, or not an index of shards: run `grrcoca prepare index` again") from error
    return index


def verify_index(path: Path) -> None:
    """Compare every array of an index with its checksum, which `load_index` does not.

    Raises:
        UsageError: One differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile):
        damaged = "it"
    if damaged:
        raise UsageError(f"{path} is damaged: run `grrcoca prepare index` again")


def _load_same(path: Path, stamp: tuple[int, int]) -> ShardIndex:
    index = load_index(path)
    if index.stamp != stamp:
        raise UsageError(f"{path} was written anew while a run was reading by it: start that run again")
    return index


def _map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed ``.npz``, mapped read-only; numpy itself would load them."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)  # lengths of name and extra field, after which the data start
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            if info.compress_type != zipfile.ZIP_STORED or np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not written by save_index")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject:
                raise ValueError("pickled objects")
            empty = 0 in shape or dtype.itemsize == 0
            name = info.filename.removesuffix(".npy")
            arrays[name] = np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", file.tell(), shape)
    return arrays
