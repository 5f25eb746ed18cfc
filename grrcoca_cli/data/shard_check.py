"""Whether shards are still what their index says, at little cost; and what can be read of those that are not."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.shard_index import ShardIndex, ShardRecord, index_of
from grrcoca_cli.data.shard_lookup import Known
from grrcoca_cli.data.shard_names import is_remote, remote_sizes
from grrcoca_cli.data.shard_scan import ABSENT, scan_shard
from grrcoca_cli.data.tar import DamagedTarError, iterate_members

_PROBES = 16
_PROBE = 4096  # bytes of each


@dataclass(frozen=True)
class Found:
    """One shard as it is now.

    Attributes:
        place: Its path or address.
        index: One that holds it; None where there is neither a shard nor an index.
        number: Which of that index's shards it is.
        status: Its bytes and time of change.
        kept: Rows of it that can be read, counted from its first; None for all.
        skipped: Samples of it that cannot, by kind.
        problem: What is wrong with it, for a person; empty where nothing is.
        present: It is there.
    """

    place: str
    index: ShardIndex | None = None
    number: int = 0
    status: tuple[int, int] = (0, 0)
    kept: NDArray[np.int64] | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    present: bool = True


def check_shards(wanted: Mapping[str, Known]) -> list[Found]:
    """Compare shards with their indices by size and time of change; those without an index are scanned.

    Every sample of an index is either kept or counted in ``skipped``.

    Raises:
        UsageError: A server does not answer.
    """
    remote = [place for place in wanted if is_remote(place)]
    sizes = dict(zip(remote, remote_sizes(remote), strict=True)) if remote else {}
    found = []
    for place, known in wanted.items():
        if known is None:
            found.append(_scanned(place))
        elif place in sizes:
            found.append(_compared_from_afar(place, *known, sizes[place]))
        else:
            found.append(_compared(place, *known))
    return found


def probe(path: Path) -> str:
    """A hash of blocks spread over a file, both its ends included: tells one shard from another at little cost."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        last = max(0, os.fstat(file.fileno()).st_size - _PROBE)
        for number in range(_PROBES):
            file.seek(last * number // (_PROBES - 1))
            digest.update(file.read(_PROBE))
    return digest.hexdigest()


def _scanned(place: str) -> Found:
    path = Path(place)
    try:
        status = path.stat()
        scanned = scan_shard(path)
    except OSError:
        return Found(place, skipped=Counter({"missing shard": 1}), problem=f"{place} is missing", present=False)
    record = ShardRecord(path.name, status.st_size, status.st_mtime_ns, usable=len(scanned.stems))
    return Found(
        place,
        index_of(record, scanned),
        status=(status.st_size, status.st_mtime_ns),
        skipped=scanned.skipped,
        problem=f"{place} is cut or damaged: fetch it again" if scanned.damaged else "",
    )


def _compared(place: str, index: ShardIndex, number: int) -> Found:
    record, path = index.records[number], Path(place)
    try:
        status = path.stat()
    except OSError:
        return _lost(place, index, number, "missing shard", "is missing")
    size, changed = status.st_size, status.st_mtime_ns
    if size == record.bytes and (changed == record.mtime_ns or probe(path) == record.probe):
        problem = f"{place} was cut or damaged when it was indexed: fetch it again" if record.damaged else ""
        return Found(place, index, number, (size, changed), skipped=Counter(record.skipped), problem=problem)
    if size > record.bytes or size == record.bytes:
        return _lost(place, index, number, "changed shard", "changed since it was indexed")
    kept = _rows_before_the_cut(path, index, number)
    lost = record.usable - len(kept)
    skipped = Counter(record.skipped) + Counter({"truncated shard": lost})
    problem = (
        f"{place} has {size} bytes instead of {record.bytes}: {lost} of its {record.usable} samples are lost; "
        "fetch it again"
    )
    return Found(place, index, number, (size, changed), kept, skipped, problem)


def _compared_from_afar(place: str, index: ShardIndex, number: int, size: int | None) -> Found:
    record = index.records[number]
    if size is None:
        return _lost(place, index, number, "missing shard", "is missing")
    if size not in (record.bytes, -1):
        reason = f"has {size} bytes instead of {record.bytes}"
        return _lost(place, index, number, "changed shard", reason)
    problem = f"{place} was cut or damaged when it was indexed: fetch it again" if record.damaged else ""
    return Found(place, index, number, (record.bytes, 0), skipped=Counter(record.skipped), problem=problem)


def _lost(place: str, index: ShardIndex, number: int, kind: str, reason: str) -> Found:
    """A shard none of whose samples is read."""
    record = index.records[number]
    skipped = Counter(record.skipped) + Counter({kind: record.usable})
    advice = "fetch it again, or run `grrcoca prepare index` again"
    problem = f"{place} {reason}: its {record.usable} samples are left out; {advice}"
    kept = np.empty(0, dtype=np.int64)
    return Found(place, index, number, (0, 0), kept, skipped, problem, present=kind != "missing shard")


def _rows_before_the_cut(path: Path, index: ShardIndex, number: int) -> NDArray[np.int64]:
    """Rows of a shortened shard whose members are all still there, whole, where the index has them."""
    members: dict[int, tuple[str, int]] = {}
    with path.open("rb") as file:
        try:
            for member in iterate_members(file, path.stat().st_size):
                members[member.offset] = member.name.removeprefix("./"), member.size
        except DamagedTarError:
            pass  # the cut: what was before it has been given
    rows = index.rows_of(number)
    stems, offsets, sizes = (array[rows].tolist() for array in index.arrays[:3])

    def is_there(stem: bytes, offset: int, size: int) -> bool:
        name, found = members.get(offset, ("", -1))
        return found >= size and name.startswith(f"{stem.decode()}.")

    whole = [
        all(is_there(stem, *each) for each in zip(places, lengths, strict=True) if each[0] != ABSENT)
        for stem, places, lengths in zip(stems, offsets, sizes, strict=True)
    ]
    return np.flatnonzero(whole)
