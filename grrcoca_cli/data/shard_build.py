"""Makes the index of a set of shards, in several processes and in as many sittings as it takes."""

import hashlib
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from grrcoca_cli.data.shard_check import probe
from grrcoca_cli.data.shard_index import ShardIndex, ShardRecord, index_of, join, load_index, save_index
from grrcoca_cli.data.shard_names import common_parent, is_remote, name_below, remote_sizes
from grrcoca_cli.data.shard_remote import fetch
from grrcoca_cli.data.shard_scan import scan_shard
from grrcoca_cli.errors import OutOfResources, UsageError
from grrcoca_cli.files import explain_os_errors, sha256_of

_WORTH_A_PROCESS = 1 << 26  # bytes of shards; fewer are read before a process has started

Job = tuple[str, ShardRecord, Path]
"""A shard to index: its place, its record as far as it is known, and where its part goes."""


def build_index(
    places: Sequence[str], out: Path, *, processes: int = 2, report: Callable[[int, int], None] | None = None
) -> ShardIndex:
    """Index ``places`` and write ``out``. Shards that ``out``, or an interrupted sitting, holds unchanged are kept.

    Args:
        places: Paths, or addresses; a remote shard is fetched to a temporary folder, one a process.
        out: The index; beside it stands a folder of parts until it is whole.
        processes: That read shards.
        report: Called with the count of shards done and of all.

    Raises:
        UsageError: A shard is missing or unreadable, or ``out`` cannot be written.
        OutOfResources: The disk is full, or a process was killed.
    """
    base = common_parent(list(places))
    records = _stat_all(places, base)
    parts = out.with_name(f".{out.name}.parts")
    with explain_os_errors(parts):
        parts.mkdir(parents=True, exist_ok=True)
    done = _known(out, parts)
    jobs: list[Job] = []
    for place, record in zip(places, records, strict=True):
        if _identity(record) not in done:
            jobs.append(
                (place, record, parts / f"{hashlib.blake2b(record.name.encode(), digest_size=8).hexdigest()}.npz")
            )
    for count, part in enumerate(_run(jobs, processes), len(records) - len(jobs) + 1):
        piece = load_index(part).copied()
        done[_identity(piece.records[0])] = piece
        if report:
            report(count, len(records))
    missing = [record.name for record in records if _identity(record) not in done]
    if missing:
        raise UsageError(f"{missing[0]} changed while it was indexed: run the same command again")
    beside = not is_remote(base) and Path(base) == out.absolute().parent
    index = join([done[_identity(record)] for record in records], "" if beside else base, with_draws=True)
    save_index(index, out)
    shutil.rmtree(parts, ignore_errors=True)
    return load_index(out)


def changed_shards(index: ShardIndex, places: Sequence[str]) -> dict[str, str]:
    """By place, how shards differ from their index, every byte compared; empty where all are as they were."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place, record in zip(places, index.records, strict=True):
            path = Path(scratch) / "shard.tar" if is_remote(place) else Path(place)
            if is_remote(place) and not fetch(place, path):
                found[place] = "cannot be fetched"
            elif not path.is_file():
                found[place] = "is missing"
            elif path.stat().st_size != record.bytes:
                found[place] = f"has {path.stat().st_size} bytes instead of {record.bytes}"
            elif sha256_of(path) != record.sha256:
                found[place] = "has another sha256"
    return found


def _stat_all(places: Sequence[str], base: str) -> list[ShardRecord]:
    names = [name_below(place, base) for place in places]
    if any(map(is_remote, places)):
        sizes = remote_sizes(list(places))
        if None in sizes:
            raise UsageError(f"{places[sizes.index(None)]} is not there: index the shards that are")
        return [ShardRecord(name, size or 0) for name, size in zip(names, sizes, strict=True)]
    records = []
    for place, name in zip(places, names, strict=True):
        try:
            status = Path(place).stat()
        except OSError as error:
            raise UsageError(f"cannot read {place}: {error.strerror}") from error
        records.append(ShardRecord(name, status.st_size, status.st_mtime_ns))
    return records


def _identity(record: ShardRecord) -> tuple[str, int, int]:
    """By which a shard is taken to be the one that was indexed before."""
    return record.name, record.bytes, record.mtime_ns


def _known(out: Path, parts: Path) -> dict[tuple[str, int, int], ShardIndex]:
    """Shards that an older index or an interrupted sitting holds."""
    known: dict[tuple[str, int, int], ShardIndex] = {}
    for path in [out, *sorted(parts.glob("*.npz"))]:
        try:
            index = load_index(path) if path == out else load_index(path).copied()
        except UsageError:
            continue  # absent, or damaged and so made anew
        known |= {_identity(record): index.piece(number) for number, record in enumerate(index.records)}
    return known


def _run(jobs: list[Job], processes: int) -> Iterator[Path]:
    processes = min(processes, len(jobs))
    if processes < 2 or sum(record.bytes for _, record, _ in jobs) < _WORTH_A_PROCESS:
        yield from map(_index_part, jobs)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(processes, context)
    try:
        for future in as_completed([pool.submit(_index_part, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OutOfResources("an indexing process was killed, most likely for want of memory: run it again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _index_part(job: Job) -> Path:
    place, record, part = job
    if not is_remote(place):
        index_one(Path(place), record, part)
        return part
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "shard.tar"
        if not fetch(place, local):
            raise UsageError(f"cannot fetch {place}: run the same command again, it goes on from here")
        index_one(local, record, part)
    return part


def index_one(path: Path, record: ShardRecord, part: Path) -> None:
    """Write the index of one shard.

    Args:
        path: The shard.
        record: With its name, size and time of change.
        part: Where to.
    """
    try:
        sha256, scanned, spread = sha256_of(path), scan_shard(path), probe(path)
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    full = ShardRecord(
        record.name,
        size if record.bytes == -1 else record.bytes,
        record.mtime_ns,
        sha256,
        spread,
        usable=len(scanned.stems),
        skipped=dict(scanned.skipped),
        damaged=scanned.damaged,
    )
    save_index(index_of(full, scanned), part)
