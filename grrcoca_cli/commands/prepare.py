"""``grrcoca prepare index``: the index of a set of shards, made, made again, or compared with every byte of them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grrcoca_cli.console import Progress, plain, say
from grrcoca_cli.data.shard_build import build_index, changed_shards
from grrcoca_cli.data.shard_index import INDEX_NAME, ShardIndex, verify_index
from grrcoca_cli.data.shard_lookup import look_up
from grrcoca_cli.data.shard_names import common_parent, find_shards, is_remote
from grrcoca_cli.data.shard_remote import make_cache
from grrcoca_cli.errors import ExitCode, UsageError
from grrcoca_cli.files import check_output_file


def prepare_index(patterns: Sequence[str], out: Path | None, *, check: bool, processes: int, as_json: bool) -> ExitCode:
    """Index the shards that ``patterns`` name, or ``check`` them against their index.

    Args:
        patterns: As `data.shards.open_shards` takes them.
        out: Where the index goes; beside the shards by default.
        check: Read all shards and compare them with the index, which stays as it is.
        processes: That read shards.
        as_json: Print the manifest as JSON.

    Raises:
        UsageError: There are no shards, or remote ones and no ``out``.
    """
    if check:
        return _check([str(out)] if out else patterns, as_json=as_json)
    if indices := [pattern for pattern in patterns if pattern.endswith(".npz")]:
        raise UsageError(f"{indices[0]} is an index: give the shards that it is of, or --check")
    named = list(dict.fromkeys(place for pattern in patterns for place in find_shards(pattern)))
    places = [place for place in named if is_remote(place) or Path(place).is_file()]
    if not places:
        raise UsageError(f"no shard matches {' '.join(patterns)!r}: expected .tar files as img2dataset writes them")
    for place in (missing := [place for place in named if place not in set(places)])[:10]:
        say(f"warning: {plain(place)} is not there")
    index = make_index(places, out, processes)
    assert index.path is not None
    _show(index, as_json=as_json)
    sound = not missing and not any(record.damaged for record in index.records)
    return ExitCode.OK if sound else ExitCode.SOME_INPUTS_FAILED


def make_index(places: Sequence[str], out: Path | None, processes: int) -> ShardIndex:
    """`build_index` with a line of progress; ``out`` defaults to a file beside the shards.

    Raises:
        UsageError: The shards are remote, and there is no ``out``.
    """
    if out is None:
        parent = common_parent(list(places))
        if is_remote(parent):
            raise UsageError("remote shards need --out FILE: a local index, which is then given as --data FILE")
        out = Path(parent) / INDEX_NAME
    check_output_file(out)
    with Progress("indexing", len(places), "shards") as progress:
        return build_index(places, out, processes=processes, report=lambda done, _: progress.show(done))


def summary(index: ShardIndex) -> dict[str, Any]:
    """The counts of an index, as JSON holds them."""
    skipped = sum((Counter(record.skipped) for record in index.records), Counter[str]())
    return {
        "index": str(index.path),
        "shards": len(index.records),
        "bytes": sum(record.bytes for record in index.records),
        "samples": sum(record.samples for record in index.records),
        "usable": len(index),
        "skipped": dict(skipped),
        "damaged": [record.name for record in index.records if record.damaged],
    }


def _show(index: ShardIndex, *, as_json: bool) -> None:
    found = summary(index)
    if as_json:
        manifest = [
            {
                "name": record.name,
                "bytes": record.bytes,
                "sha256": record.sha256,
                "samples": record.samples,
                "usable": record.usable,
                "skipped": record.skipped,
                "damaged": record.damaged,
            }
            for record in index.records
        ]
        print(json.dumps({"schema": 1, **found, "manifest": manifest}))
        return
    for name in found["damaged"]:
        say(f"warning: {plain(name)} is cut or damaged: fetch it again")
    left_out = "".join(f", {count} {kind}" for kind, count in sorted(found["skipped"].items()))
    print(f"{found['index']}: {found['shards']} shards, {found['bytes'] / 1e6:.1f} MB, {len(index)} samples{left_out}")


def _check(patterns: Sequence[str], *, as_json: bool) -> ExitCode:
    store = make_cache("", 1) if any(map(is_remote, patterns)) else None
    known = look_up(patterns, store)
    progress, changed = Progress("comparing", len(known), "shards"), {}
    for count, (place, entry) in enumerate(known.items(), 1):
        if entry is None:
            changed[place] = "is in no index"
        else:
            index, number = entry
            if index.path is not None and number == 0:
                verify_index(index.path)
            changed |= changed_shards(index.piece(number), [place])
        progress.show(count)
    progress.close()
    if not known:
        raise UsageError(f"no shard matches {' '.join(patterns)!r}: give what was indexed, or the index")
    if as_json:
        print(json.dumps({"schema": 1, "shards": len(known), "changed": changed}))
    else:
        for place, reason in changed.items():
            print(f"{plain(place)} {reason}")
        print(f"{len(known) - len(changed)} of {len(known)} shards are as they were indexed")
    return ExitCode.SOME_INPUTS_FAILED if changed else ExitCode.OK
