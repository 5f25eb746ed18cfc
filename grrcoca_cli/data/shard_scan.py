"""What one webdataset tar holds: its usable samples, where their bytes are, and why the others are not usable."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.data.tar import DamagedTarError, Member, iterate_members

PICTURE, TEXT, JSON = range(3)
"""Columns of the index: which member of a sample."""

ABSENT = -1
"""Offset of a member that a sample does not have."""

_COLUMNS = {**dict.fromkeys(("jpg", "jpeg", "png", "webp"), PICTURE), "txt": TEXT, "json": JSON}
"""Which column a member's extension belongs to; all other members are left alone, unread."""

_LARGEST = (1 << 28, 1 << 20, 1 << 20)  # bytes that are read; a larger picture is cut, and refused when it is decoded
_LONGEST_KEY = 255  # bytes: keys are held in columns of one width


class ScannedShard(NamedTuple):
    """The usable samples of one shard, in its order.

    Attributes:
        stems: Member names without extension, UTF-8, (length,).
        offsets: Where the data of picture, text and JSON start, (length, 3) int64, `ABSENT` without such a member.
        sizes: Bytes of them that are read, (length, 3) uint32.
        skipped: Samples that cannot be used, by kind.
        damaged: The shard is cut, or a header in it is not one.
    """

    stems: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    skipped: Counter[str]
    damaged: bool


def scan_shard(path: Path) -> ScannedShard:
    """Find the usable samples of one shard; reads headers and captions, no pictures.

    A sample is a picture with a caption: ``captions`` of its ``json``, its ``txt``, or ``caption`` of its ``json``.
    Where the shard is damaged and img2dataset's ``_stats.json`` lies beside it, the samples lost are counted exactly.
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
                if not row.take(member, column):
                    skipped["duplicate member"] += 1
                elif column != PICTURE:
                    file.seek(member.offset)
                    row.take_text(file.read(row.sizes[column]), column)
        except DamagedTarError as error:
            damage = error
    partial = _drop_partial(rows, _split_name(damage.name)[0]) if damage else 0
    if damage and (lost := _count_lost(path, len(rows), partial)):
        skipped[damage.kind] = lost
    usable: dict[bytes, _Row] = {}
    for stem, row in rows.items():
        name = stem.encode()
        if reason := row.why_unusable() or ("name too long" if len(name) > _LONGEST_KEY else ""):
            skipped[reason] += 1
        else:
            usable[name] = row
    offsets = np.array([row.offsets for row in usable.values()], dtype=np.int64).reshape(-1, 3)
    sizes = np.array([row.sizes for row in usable.values()], dtype=np.uint32).reshape(-1, 3)
    return ScannedShard(np.array(list(usable), dtype=np.bytes_), offsets, sizes, skipped, damage is not None)


def captions_of(text: bytes, info: dict[str, Any]) -> tuple[str, ...]:
    """The captions of a sample: the list ``captions`` of its JSON, else its text, else ``caption`` of its JSON."""
    several = info.get("captions")
    if isinstance(several, list):
        kept = tuple(caption for each in several if isinstance(each, str) and (caption := clean_caption(each)))
        if kept:
            return kept
    caption = clean_caption(text.decode("utf-8", "replace")) or clean_caption(str(info.get("caption") or ""))
    return (caption,) if caption else ()


def fields_of(info: dict[str, Any]) -> dict[str, str]:
    """The plain values of a sample's JSON other than its captions, as text."""
    return {
        name: str(value) for name, value in info.items() if isinstance(value, str | int | float) and name != "caption"
    }


def parse_info(data: bytes) -> dict[str, Any]:
    """A sample's JSON; empty where it is no object."""
    try:
        info = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


@dataclass(slots=True)
class _Row:
    """What is known of a sample while its shard is read."""

    offsets: list[int] = field(default_factory=lambda: [ABSENT] * 3)
    sizes: list[int] = field(default_factory=lambda: [0] * 3)
    has_caption: bool = False
    failed: bool = False

    def take(self, member: Member, column: int) -> bool:
        """Note where a member is; False where the sample has one of its kind."""
        if self.offsets[column] != ABSENT:
            return False
        self.offsets[column], self.sizes[column] = member.offset, min(member.size, _LARGEST[column])
        return True

    def take_text(self, data: bytes, column: int) -> None:
        info = parse_info(data) if column == JSON else {}
        self.has_caption |= bool(captions_of(data if column == TEXT else b"", info))
        self.failed |= str(info.get("status", "")).startswith("failed")  # img2dataset's words

    def why_unusable(self) -> str:
        if self.failed:
            return "failed download"
        if self.offsets[PICTURE] == ABSENT:
            return "no picture"
        return "" if self.has_caption else "empty caption"

    def is_whole(self) -> bool:
        picture, text, info = self.kinds()
        return picture and (text or info)

    def kinds(self) -> list[bool]:
        return [offset != ABSENT for offset in self.offsets]


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return max(partial, 1)


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member as webdataset splits them, at the first dot of the last part of its path."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()
