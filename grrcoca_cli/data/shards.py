"""Webdataset tar shards, as img2dataset writes CC12M, read at random through an index of member offsets."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import Sample
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.data.tar import DamagedTarError, iterate_members, read_member
from grrcoca_cli.errors import UnreadableImage, UsageError

_PICTURE, _TEXT, _JSON = range(3)
_COLUMNS = {**dict.fromkeys(("jpg", "jpeg", "png", "webp"), _PICTURE), "txt": _TEXT, "json": _JSON}
"""Which column of the index a member's extension belongs to; all other members are left alone."""

_LARGEST_PICTURE = 1 << 28  # bytes that are read; a larger picture is cut and so refused when it is decoded
_LARGEST_TEXT = 1 << 20
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_ABSENT = -1


@dataclass(frozen=True)
class ShardIndex:
    """Where the usable samples of one shard are; plain arrays, so that it can be kept in a file.

    Attributes:
        stems: Member names without extension, UTF-8, (length,).
        starts: Positions of the headers of picture, text and JSON, (length, 3) int64, -1 for a member that is absent.
        skipped: Samples of this shard that cannot be used, by kind.
        damaged: The shard is cut, or a header in it is not one.
    """

    stems: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    skipped: Counter[str]
    damaged: bool


@dataclass(frozen=True)
class ShardDataset:
    """The usable samples of many shards, in the order of shards and of their pictures within.

    Attributes:
        shards: Files, by the numbers in ``shard``.
        names: What a shard's samples are prefixed with where stems repeat; empty where they do not.
        shard: Which file a sample is in, (length,) int32.
        stems: Keys within a shard, UTF-8, (length,).
        starts: As in `ShardIndex`, (length, 3).
        skipped: Unusable samples by kind; ``"truncated shard"`` counts the samples that are known to be lost, at least
            one a shard.
        damaged: Shards that are cut, damaged or missing.
    """

    shards: list[Path]
    names: list[str]
    shard: NDArray[np.int32]
    stems: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    skipped: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, index: int) -> str:
        """The member's name without extension, after the shard's name where the same one is in several shards."""
        stem = self.stems[index].decode()
        return f"{self.names[self.shard[index]]}/{stem}" if self.names else stem

    def __getitem__(self, index: int) -> Sample:
        return self._read(index, with_picture=True)

    def peek(self, index: int) -> Sample:
        """The sample without its picture's bytes."""
        return self._read(index, with_picture=False)

    def _read(self, index: int, with_picture: bool) -> Sample:
        picture, text, info = self.starts[index].tolist()
        try:
            with self.shards[self.shard[index]].open("rb") as file:  # opened anew: nothing to share between processes
                image = read_member(file, picture, _LARGEST_PICTURE) if with_picture else b""
                caption = _caption(read_member(file, text, _LARGEST_TEXT)) if text != _ABSENT else ""
                fields = _parse(read_member(file, info, _LARGEST_TEXT)) if info != _ABSENT else {}
        except (OSError, DamagedTarError) as error:
            raise UnreadableImage("shard changed") from error
        caption = caption or clean_caption(fields.get("caption", ""))
        return Sample(self.key(index), image, (caption,), {name: fields[name] for name in fields if name != "caption"})


def open_shards(pattern: str | Sequence[str]) -> ShardDataset:
    """Index the shards that ``pattern`` names; reads headers and captions, no pictures.

    Args:
        pattern: One or more of: a file, a folder of ``.tar`` files, a glob, braces (``{00000..01242}``, ``{a,b}``).

    Raises:
        UsageError: No shard is there, or no sample in them can be used.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    paths = [path for each in patterns for path in find_shards(each)]
    shards = [path for path in dict.fromkeys(paths) if path.is_file()]
    shown = " ".join(patterns)
    if not shards:
        raise UsageError(f"no shard matches {shown!r}: expected .tar files as img2dataset writes them")
    indices = [index_shard(path) for path in shards]
    skipped = sum((index.skipped for index in indices), Counter[str]())
    missing = [str(path) for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        skipped["missing shard"] = len(missing)
    damaged = [str(path) for path, index in zip(shards, indices, strict=True) if index.damaged]
    stems = np.concatenate([index.stems for index in indices])
    if not len(stems):
        counts = ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "they are empty"
        raise UsageError(f"no usable sample in the {len(shards)} shards of {shown!r}: {counts}")
    return ShardDataset(
        shards=shards,
        names=_shard_names(shards) if len(np.unique(stems)) < len(stems) else [],
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), [len(index.stems) for index in indices]),
        stems=stems,
        starts=np.concatenate([index.starts for index in indices]),
        skipped=skipped,
        damaged=damaged + missing,
    )


def find_shards(pattern: str) -> list[Path]:
    """Paths that one pattern names, braces before globs, sorted within a glob; a plain path need not be there."""
    found: list[Path] = []
    for name in _expand_braces(pattern):
        path = Path(name).expanduser()
        if path.is_dir():
            found += sorted(path.glob("*.tar"))
        elif path.exists() or not glob.has_magic(name):
            found.append(path)
        else:
            found += sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207  Path.glob takes no absolute
    return found


def _expand_braces(pattern: str) -> Iterator[str]:
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
        yield from _expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _shard_names(shards: list[Path]) -> list[str]:
    common = Path(os.path.commonpath([path.absolute().parent for path in shards]))
    return [path.absolute().relative_to(common).with_suffix("").as_posix() for path in shards]


def index_shard(path: Path) -> ShardIndex:
    """Find the usable samples of one shard.

    A sample is a picture with a caption: its ``txt``, else ``caption`` of its ``json``. Where the shard is damaged and
    img2dataset's ``_stats.json`` lies beside it, the samples lost are counted exactly.
    """
    rows: dict[str, _Row] = {}
    skipped: Counter[str] = Counter()
    damage = None
    with path.open("rb") as file:
        try:
            for member in iterate_members(file, path.stat().st_size):
                stem, extension = _split_name(member.name)
                column = _COLUMNS.get(extension)
                if column is None or not stem:
                    continue
                row = rows.setdefault(stem, _Row())
                if row.starts[column] != _ABSENT:
                    skipped["duplicate member"] += 1
                    continue
                row.starts[column] = member.start
                if column != _PICTURE:
                    file.seek(member.offset)
                    row.take_text(file.read(min(member.size, _LARGEST_TEXT)), column)
        except DamagedTarError as error:
            damage = error
    partial = _drop_partial(rows, _split_name(damage.name)[0]) if damage else 0
    if damage and (lost := _count_lost(path, len(rows), partial)):
        skipped[damage.kind] = lost
    usable = {}
    for stem, row in rows.items():
        if reason := row.why_unusable():
            skipped[reason] += 1
        else:
            usable[stem.encode()] = row.starts
    starts = np.array(list(usable.values()), dtype=np.int64).reshape(-1, 3)
    return ShardIndex(np.array(list(usable), dtype=np.bytes_), starts, skipped, damage is not None)


@dataclass(slots=True)
class _Row:
    """What is known of a sample while its shard is read."""

    starts: list[int] = field(default_factory=lambda: [_ABSENT] * 3)
    has_caption: bool = False
    failed: bool = False

    def take_text(self, data: bytes, column: int) -> None:
        if column == _TEXT:
            self.has_caption |= bool(_caption(data))
        else:
            info = _parse(data)
            self.has_caption |= bool(clean_caption(info.get("caption", "")))
            self.failed = info.get("status", "success") != "success"

    def why_unusable(self) -> str:
        if self.failed:
            return "failed download"
        if self.starts[_PICTURE] == _ABSENT:
            return "no picture"
        return "" if self.has_caption else "empty caption"

    def is_whole(self) -> bool:
        picture, text, info = self.kinds()
        return picture and (text or info)

    def kinds(self) -> list[bool]:
        return [start != _ABSENT for start in self.starts]


def _drop_partial(rows: dict[str, _Row], cut_stem: str) -> int:
    """Take out of a damaged shard's ``rows`` the samples that the damage left incomplete, and count them.

    Whole is a sample that is not the one cut through, has a picture and a text, and, being the last, has every kind
    of member that the first one has.
    """
    if not rows:
        return int(bool(cut_stem))
    first, last = next(iter(rows.values())), next(reversed(rows))
    partial = {stem for stem, row in rows.items() if not (row.failed or row.is_whole())}
    if rows[last].kinds() < first.kinds():
        partial.add(last)
    if cut_stem:
        partial.add(cut_stem)
    for stem in partial:
        rows.pop(stem, None)
    return len(partial)


def _count_lost(path: Path, whole: int, partial: int) -> int:
    """Samples that a damaged shard has lost: exactly, by img2dataset's statistics, else at least the partial ones."""
    try:
        stated = json.loads(path.with_name(f"{path.stem}_stats.json").read_bytes())["successes"]
        return max(int(stated) - whole, partial)
    except (OSError, ValueError, KeyError, TypeError):
        return max(partial, 1)


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member as webdataset splits them, at the first dot of the last part of its path."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def _caption(data: bytes) -> str:
    return clean_caption(data.decode("utf-8", "replace"))


def _parse(data: bytes) -> dict[str, str]:
    """The plain values of a JSON object, as text; empty where it is not one."""
    try:
        info = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(info, dict):
        return {}
    return {name: str(value) for name, value in info.items() if isinstance(value, str | int | float)}
