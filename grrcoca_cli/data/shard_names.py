"""Which shards a pattern names: files, folders, globs, braces, and addresses that fsspec opens."""

import glob
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grrcoca_cli.errors import UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://")
_COMMAND = re.compile(r"[A-Za-z][\w+-]+:(?!//)|.*::")


def is_remote(place: str) -> bool:
    """Whether ``place`` is an address such as ``s3://bucket/00000.tar``, not a path."""
    return bool(_ADDRESS.match(place)) and not _COMMAND.match(place)


def is_shards(pattern: str) -> bool:
    """Whether a data path given without its kind names shards: tar files, their index, or a folder that holds some."""
    return ".tar" in pattern or pattern.endswith(".npz") or any(Path(pattern).expanduser().glob("*.tar"))


def find_shards(pattern: str) -> list[str]:
    """Paths or addresses that one pattern names, sorted within a glob; one that is written out need not be there.

    Args:
        pattern: A file, a folder of ``.tar`` files, a glob, braces (``{00000..01242}``, ``{a,b}``), or any of them as
            an address.

    Raises:
        UsageError: It names a command (``pipe:``) or a chain of addresses (``::``), or cannot be listed.
    """
    found: list[str] = []
    for name in expand_braces(pattern):
        if is_remote(name):
            found += _find_remote(name)
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            found += sorted(map(str, path.glob("*.tar")))
        elif path.exists():
            found.append(str(path))
        elif _COMMAND.match(name):
            raise UsageError(
                f"no shard matches {name!r}: it is no file, and commands (pipe:) and chained addresses (::) are never "
                "run; give a file, a folder, a glob, or an address such as s3://bucket/00000.tar"
            )
        elif glob.has_magic(name):
            found += sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute
        else:
            found.append(str(path))
    return found


def names_a_file(pattern: str) -> bool:
    """Whether any file that a local pattern names is there."""
    return any(Path(place).is_file() for place in find_shards(pattern))


def expand_braces(pattern: str) -> Iterator[str]:
    """Every name that a pattern with ``{000..123}`` and ``{a,b}`` stands for."""
    braces = _BRACES.search(pattern)
    if not braces:
        yield pattern
        return
    numbers = _NUMBERS.fullmatch(braces[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def filesystem(address: str) -> tuple["AbstractFileSystem", str]:
    """The file system of an address, and the path in it.

    Raises:
        UsageError: The protocol is not known, or its package is not installed.
    """
    from fsspec.core import url_to_fs  # half a second with its protocols, which local shards do not need

    try:
        system, path = url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(f"cannot open {address}: {_one_line(error)}") from error
    return system, str(path)


def remote_sizes(addresses: list[str]) -> list[int | None]:
    """Bytes of each remote file: None where it is not there, -1 where the server does not say.

    Raises:
        UsageError: The server does not answer.
    """
    from concurrent.futures import ThreadPoolExecutor

    def size(address: str) -> int | None:
        system, path = filesystem(address)
        try:
            said: Any = system.info(path).get("size")
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol's package has errors of its own
            raise UsageError(f"cannot look at {address}: {_one_line(error)}") from error
        return -1 if said is None else int(said)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(size, addresses))


def full_path(place: str) -> str:
    """An address as it is; a path from the root, without ``..``, so that two ways to write it are the same text."""
    return place if is_remote(place) else os.path.abspath(Path(place).expanduser())  # noqa: PTH100  Path keeps ".."


def parent_of(place: str) -> str:
    """The folder or address a shard is in."""
    return posixpath.dirname(full_path(place))


def common_parent(places: list[str]) -> str:
    """The folder or address that all of ``places`` are below."""
    parents = [parent_of(place) for place in places]
    if not any(map(is_remote, parents)):
        return os.path.commonpath(parents)
    schemes = {parent.partition("://")[0] for parent in parents}
    if len(schemes) > 1:
        raise UsageError("one index is for shards of one place: give local and remote ones apart")
    common = os.path.commonprefix([parent + "/" for parent in parents])  # noqa: RUF071  cut at a slash below
    return common[: common.rfind("/")]


def name_below(place: str, base: str) -> str:
    """A shard's name within `common_parent`."""
    if is_remote(place):
        return place.removeprefix(base).lstrip("/")
    return Path(full_path(place)).relative_to(base).as_posix()


def _find_remote(name: str) -> list[str]:
    system, path = filesystem(name)
    bare = name.split("?")[0]  # a signed address has a query, in which a * or ? is no glob
    if bare.endswith(".tar") and not glob.has_magic(bare):
        return [str(system.unstrip_protocol(path))]
    pattern = path if glob.has_magic(path) else f"{path.rstrip('/')}/*.tar"
    try:
        return sorted(str(system.unstrip_protocol(found)) for found in system.glob(pattern))
    except Exception as error:  # each protocol's package has errors of its own
        raise UsageError(f"cannot list {name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
