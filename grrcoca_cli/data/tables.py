"""Caption files, CSV, TSV or JSON Lines, as rows of picture, captions, split and further columns."""

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.errors import UsageError

IMAGE_COLUMNS = ("file", "filename", "file_name", "image", "image_path", "path", "picture", "name", "image_id", "id")
CAPTION_COLUMNS = ("caption", "captions", "text")
"""Names of columns, in any case; the first one that a table has counts."""

SPLIT_COLUMN = "split"

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split is called in files, and what it is called here."""

EXTENSIONS = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})


@dataclass(frozen=True)
class CaptionRow:
    """One picture and what is said of it.

    Attributes:
        image: The picture as the table names it; empty where it does not.
        captions: Cleaned, none empty.
        split: In our words, None where nothing says it.
        fields: Further columns that have a value.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


def canonical_split(name: str) -> str:
    """The split ``name`` in our words: ``train``, ``valid``, ``test`` or, lower-case, its own."""
    return SPLITS.get(name.strip().lower(), name.strip().lower())


def split_in_name(name: str) -> str | None:
    """The split that a file's or folder's name states, as in ``captions_test`` or ``train2017``."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def read_table(path: Path) -> list[CaptionRow] | str:
    """The rows of a caption file, or, in words, which columns it lacks: then it is another kind of table.

    Lines that are no row (JSON that is damaged or no object) come as rows without a picture.

    Raises:
        UsageError: The file is not UTF-8, or not a table.
    """
    rows: list[CaptionRow] = []
    columns: dict[str, None] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for values in _read_json_lines(file) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(file):
                columns |= dict.fromkeys(values)
                rows.append(_to_row(values))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except (csv.Error, OSError) as error:
        raise UsageError(f"{path} cannot be read as a table: {error}") from error
    return _explain(list(columns)) or rows


def _read_csv(file: TextIO) -> Iterator[dict[str, object]]:
    header = file.readline()
    file.seek(0)
    delimiter = max(",;\t", key=header.count)  # the comma where there is but one column
    for values in csv.DictReader(file, delimiter=delimiter):
        yield {name: value for name, value in values.items() if name is not None}


def _read_json_lines(file: TextIO) -> Iterator[dict[str, object]]:
    for line in file:
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        yield values if isinstance(values, dict) else {}


def _column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Which of a table's ``names`` is the first of ``wanted``."""
    by_lower = {name.strip().lower(): name for name in names}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _to_row(values: dict[str, object]) -> CaptionRow:
    image, caption, split = (_column(values, names) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS, (SPLIT_COLUMN,)))
    texts = values.get(caption) if caption is not None else None
    captions = [
        clean_caption(text) for text in (texts if isinstance(texts, list) else [texts]) if isinstance(text, str)
    ]
    others = {name: _text(value) for name, value in values.items() if name not in (image, caption, split)}
    return CaptionRow(
        image=_text(values.get(image)) if image is not None else "",
        captions=tuple(text for text in captions if text),
        split=canonical_split(_text(values[split])) or None if split is not None else None,
        fields={name.strip(): value for name, value in others.items() if value},
    )


def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _explain(columns: list[str]) -> str:
    """Which columns are missing, which are there, and which of these is nearly right; empty if none is missing."""
    for kind, wanted in (("caption", CAPTION_COLUMNS), ("picture", IMAGE_COLUMNS)):
        if _column(columns, wanted) is None:
            near = [name for name in columns if difflib.get_close_matches(name.lower(), wanted, n=1)]
            hint = f"; did you mean {near[0]!r} to be the {kind}?" if near else ""
            found = ", ".join(map(repr, columns)) or "(none)"
            return f"has no {kind} column ({', '.join(wanted)}) among its columns {found}{hint}"
    return ""
