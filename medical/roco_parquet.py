"""ROCO and ROCOv2 as the Hub holds them: parquet files with encoded pictures inside. Needs the extra ``parquet``."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import Sample
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.errors import UnreadableImage, UsageError

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

_PICTURE = "image.bytes"
_NEEDED = (_PICTURE, "image_id", "caption")


@dataclass
class ParquetDataset:
    """Samples whose pictures are read when asked for, a row group at a time.

    Attributes:
        files: Parquet files.
        samples: Without their pictures, in the files' order.
        places: File, row group and row within it of each sample, (length, 3).
        skipped: Rows that were left out, by reason.
    """

    files: list[Path]
    samples: list[Sample]
    places: NDArray[np.int64]
    skipped: Counter[str]
    # The newest row group: evaluation goes through the rows in order, and a group is one compressed piece
    _newest: tuple[tuple[int, int], list[bytes | None]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        file, group, row = (int(number) for number in self.places[index])
        if self._newest is None or self._newest[0] != (file, group):
            self._newest = (file, group), _pictures(self.files[file], group)
        picture = self._newest[1][row]
        if picture is None:
            raise UnreadableImage("no picture")
        known = self.samples[index]
        return Sample(known.key, picture, known.captions, known.fields)

    def key(self, index: int) -> str:
        """The key of the sample at ``index``."""
        return self.samples[index].key

    def peek(self, index: int) -> Sample:
        """The sample at ``index`` without its picture."""
        return self.samples[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_newest": None}


def find_parquet(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Files ``NAME-*.parquet`` of a split, in ``root`` or in its folder ``data``, by the first name that has any."""
    for folder in (root, root / "data"):
        for name in names:
            if found := sorted(folder.glob(f"{name}-*.parquet")) + sorted(folder.glob(f"{name}.parquet")):
                return found
    return []


def open_parquet(files: list[Path]) -> ParquetDataset:
    """The rows of some files that have a picture and a caption; ``cuis`` become a field, joined by ``;``.

    Raises:
        UsageError: pyarrow is missing; a file is damaged, or lacks ``image``, ``image_id`` or ``caption``.
    """
    samples: dict[str, Sample] = {}
    places: list[tuple[int, int, int]] = []
    skipped: Counter[str] = Counter()
    for number, path in enumerate(files):
        parquet = _open(path)
        for group in range(parquet.num_row_groups):
            for row, (key, caption, cuis, pictured) in enumerate(_rows(parquet, group, path)):
                if key in samples:
                    skipped["repeated id"] += 1
                elif not caption:
                    skipped["empty caption"] += 1
                elif not pictured:
                    skipped["no picture"] += 1
                else:
                    samples[key] = Sample(key, b"", (caption,), {"cuis": cuis} if cuis else {})
                    places.append((number, group, row))
    return ParquetDataset(files, list(samples.values()), np.array(places, np.int64).reshape(-1, 3), skipped)


def _open(path: Path) -> "ParquetFile":
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f"{path} needs pyarrow to be read: pip install 'grrcoca[parquet]'") from None
    try:
        parquet = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a sound parquet file: download it again") from error
    names = [column.path for column in parquet.schema]
    if missing := [name for name in _NEEDED if name not in names]:
        raise UsageError(f"{path} has no column {missing[0]!r}, as ROCO on the Hub has; it has {', '.join(names)}")
    return parquet


def _rows(parquet: "ParquetFile", group: int, path: Path) -> list[tuple[str, str, str, bool]]:
    """Id, caption, CUIs and whether there is a picture, of each row of a group."""
    columns = [name for name in ("image_id", "caption", "cui") if name in parquet.schema_arrow.names]
    table = _read(parquet, group, columns, path)
    ids, captions = (table[name].to_pylist() for name in ("image_id", "caption"))
    cuis = table["cui"].to_pylist() if "cui" in columns else [None] * len(ids)
    pictured = [True] * len(ids)
    if _may_lack_pictures(parquet, group):
        pictured = [bool(picture) for picture in _pictures(path, group)]
    return [
        (str(key or "").strip(), clean_caption(caption or ""), _joined(codes), has)
        for key, caption, codes, has in zip(ids, captions, cuis, pictured, strict=True)
    ]


def _may_lack_pictures(parquet: "ParquetFile", group: int) -> bool:
    """Whether a group holds an empty picture, by its statistics; without them, yes."""
    described = parquet.metadata.row_group(group)
    column = next(c for c in map(described.column, range(described.num_columns)) if c.path_in_schema == _PICTURE)
    return column.statistics is None or not column.statistics.has_null_count or column.statistics.null_count > 0


def _pictures(path: Path, group: int) -> list[bytes | None]:
    pictures = _read(_open(path), group, [_PICTURE], path)["image"].to_pylist()
    return [entry and entry["bytes"] for entry in pictures]


def _read(parquet: "ParquetFile", group: int, columns: list[str], path: Path) -> "Table":
    from pyarrow import ArrowException

    try:
        return parquet.read_row_group(group, columns=columns)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}, row group {group} cannot be read: download the file again") from error


def _joined(codes: list[str | None] | None) -> str:
    """CUIs joined by ``;``; an empty list is at times written as ``['nan']``."""
    return ";".join(code for code in codes or () if code and code != "nan")
