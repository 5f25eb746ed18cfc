"""From patterns to shards and the indices that know them."""

import fnmatch
import glob
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from grrcoca_cli.data.shard_index import INDEX_NAME, ShardIndex, load_index
from grrcoca_cli.data.shard_names import expand_braces, find_shards, full_path, is_remote, parent_of
from grrcoca_cli.data.shard_remote import WindowCache, fetch
from grrcoca_cli.errors import UsageError

Known = tuple[ShardIndex, int] | None
"""An index, and which of its shards it is; None for a shard without index."""


def look_up(patterns: Sequence[str], store: WindowCache | None) -> dict[str, Known]:
    """The shards that patterns name, in order, each with what is known of it.

    A shard that an index lists and a folder or glob would name is there even where its file is not.

    Args:
        patterns: As `shards.open_shards` takes them.
        store: Where an index that lies beside remote shards is put.

    Raises:
        UsageError: An index is damaged, remote shards have none, or a pattern names a command.
    """
    wanted: dict[str, Known] = {}
    folders: set[str] = set()  # in which an index was looked for
    known: dict[str, Known] = {}  # what these indices know
    for name in (name for pattern in patterns for name in expand_braces(pattern)):
        if name.endswith(".npz"):
            wanted |= _of_index(name, store)
            continue
        found = find_shards(name)
        for folder in {*map(parent_of, found), *_folder_of(name)} - folders:
            folders.add(folder)
            known |= _beside(folder, store)
        by_path = {full_path(place): place for place in found}
        gone = [path for path in _named_by(name, known) if path not in by_path]
        for path in sorted([*by_path, *gone]) if gone else by_path:
            place = by_path.get(path, path)
            if is_remote(place) and path not in known:
                raise UsageError(
                    f"{place} has no index, which remote shards need: run `grrcoca prepare index '{name}' "
                    "--out index.npz` once, and give index.npz as data"
                )
            wanted.setdefault(place, known.get(path))
    return wanted


def _of_index(name: str, store: WindowCache | None) -> dict[str, Known]:
    """All shards of the index that is named."""
    if is_remote(name):
        found = _fetched(name, store)
        if found is None:
            raise UsageError(f"no index at {name}")
        return _placed(found, posixpath.dirname(name))
    path = Path(full_path(name))
    return _placed(load_index(path), str(path.parent))


def _beside(folder: str, store: WindowCache | None) -> dict[str, Known]:
    """What the index in a folder, or in the one above, knows; empty without one."""
    if is_remote(folder):
        found = _fetched(f"{folder}/{INDEX_NAME}", store)
        return _placed(found, folder) if found is not None else {}
    for path in (Path(folder) / INDEX_NAME, Path(folder).parent / INDEX_NAME):
        if path.is_file():
            return _placed(load_index(path), str(path.parent))
    return {}


def _placed(index: ShardIndex, folder: str) -> dict[str, Known]:
    base = index.base or folder
    join = posixpath.join if is_remote(base) else os.path.join
    return {join(base, record.name): (index, number) for number, record in enumerate(index.records)}


def _fetched(address: str, store: WindowCache | None) -> ShardIndex | None:
    """A remote index, copied; None where there is none."""
    assert store is not None
    path = store.folder / f"index-{hashlib.blake2b(address.encode(), digest_size=8).hexdigest()}-{os.getpid()}.npz"
    return load_index(path) if fetch(address, path) else None


def _folder_of(name: str) -> Iterator[str]:
    """The folder that a folder or glob pattern lists, which may be empty by now."""
    if is_remote(name):
        return
    path = Path(full_path(name))
    if path.is_dir():
        yield str(path)
    elif glob.has_magic(path.name) and not glob.has_magic(str(path.parent)):
        yield str(path.parent)


def _named_by(name: str, known: dict[str, Known]) -> Iterator[str]:
    """Places among ``known`` that a folder or glob pattern names."""
    if is_remote(name):
        pattern = name.rstrip("/") if glob.has_magic(name) or name.endswith(".tar") else f"{name.rstrip('/')}/*.tar"
    else:
        path = Path(full_path(name))
        pattern = f"{path}/*.tar" if path.is_dir() else str(path)
    if not glob.has_magic(pattern):
        return
    for place in known:
        if ("**" in pattern or place.count("/") == pattern.count("/")) and fnmatch.fnmatchcase(place, pattern):
            yield place
