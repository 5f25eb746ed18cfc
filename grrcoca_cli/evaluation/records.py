"""Rows of a caption file of any form: COCO's JSON, JSON Lines, CSV, TSV, a JSON object by image id, text."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grrcoca_cli.errors import UsageError

ID_COLUMNS = ("image_id", "file", "image", "key", "id")
"""Columns that may name the image, the likeliest first; case does not matter. COCO's ``id`` numbers the caption."""

TEXT_COLUMNS = ("caption", "captions", "text", "prediction", "reference", "references")
"""Columns that may hold a caption or a list of them; case does not matter."""

FORMS = (
    'COCO JSON ([{"image_id": 1, "caption": "…"}]), {"1": "…"}, JSON Lines, a CSV or TSV with a header such as '
    "file,caption, lines of a file, a tab and its caption, or plain text named .txt with one caption per line"
)


@dataclass(frozen=True)
class Row:
    """One entry of a caption file.

    Attributes:
        place: File and line, or file and entry, for messages.
        fields: Values by lower-case column name.
        form: ``plain`` where the image's id is only the number of its line, ``tabbed`` where a tab ends it.
    """

    place: str
    fields: dict[str, object]
    form: Literal["", "plain", "tabbed"] = ""


def read_rows(path: Path) -> list[Row]:
    """Every row of the file; a blank line is skipped, except in plain text, where it is an empty caption.

    The form follows from the content, with two exceptions: ``.csv`` and ``.tsv`` files are always tables, and a
    ``.txt`` file that is neither JSON nor tabbed holds one caption per line, whose number from 1 is the image's id.
    A tabbed file has a tab in every line: a file, a tab, its caption, as ``grrcoca caption`` writes text.

    Raises:
        UsageError: The file is absent, unreadable, empty, not UTF-8 text, of another form or malformed.
    """
    text = _read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(_table_rows(path, text))
    first = text.lstrip().split("\n", 1)[0]
    if not _is_json(first):
        if _is_tabbed(text):
            return list(_table_rows(path, text) if _is_header(first) else _tabbed_rows(path, text))
        if path.suffix.lower() == ".txt":
            return list(_plain_rows(path, text))
    if text.lstrip()[0] not in "[{":
        raise UsageError(f"{path}: the form of this file is not known; give {FORMS}")
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second JSON value follows the first
            return list(_line_rows(path, text))
        raise UsageError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); write the file again") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}); write the file again") from error
    return list(_document_rows(path, document))


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a file of captions") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8, or give {FORMS}") from error
    if "\0" in text:
        raise UsageError(f"{path}: a binary file; give {FORMS}")
    if not text.strip():
        raise UsageError(f"{path}: the file is empty; give {FORMS}")
    return text


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, which must not give one key two values: ``json`` would keep the last and say nothing."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result and result[key] != value:
            raise ValueError(f"key {key!r} is there twice with different values")
        result[key] = value
    return result


def _document_rows(path: Path, document: object) -> Iterator[Row]:
    """Rows of one JSON value: a list, COCO annotations, a single row, or captions by id."""
    entry = "entry"
    if isinstance(document, dict):
        if isinstance(document.get("annotations"), list):
            document, entry = _with_image_columns(document), "annotation"
        elif _is_row(document):
            document = [document]
        else:
            for image, value in document.items():
                yield Row(f"{path}: key {image!r}", {"id": image, "caption": value})
            return
    if not isinstance(document, list) or not document:
        raise UsageError(f"{path}: there are no captions in it; give {FORMS}")
    for number, value in enumerate(document, start=1):
        yield _row(f"{path}: {entry} {number}", value)


def _with_image_columns(document: dict[str, object]) -> list[object]:
    """COCO's annotations, each with the columns of its image (``file_name`` and whatever else), for groups."""
    listed = document.get("images")
    listed = listed if isinstance(listed, list) else []
    images = {str(image.get("id")): image for image in listed if isinstance(image, dict)}  # 1 and "1" are one id
    annotations = document["annotations"]
    assert isinstance(annotations, list)
    return [
        {**images.get(str(entry.get("image_id")), {}), **entry} if isinstance(entry, dict) else entry
        for entry in annotations
    ]


def _line_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a caption may hold U+2028
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}: not valid JSON ({error}); each line must be one JSON object") from error
        yield _row(place, value)


def _table_rows(path: Path, text: str) -> Iterator[Row]:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    csv.field_size_limit(2**31 - 1)  # a caption may be longer than the default of 131,072 characters
    delimiter = max(",\t;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for values in reader:
            if not values:
                continue
            if not columns:
                columns = [name.strip().lower() for name in values]
                if repeated := sorted({name for name in columns if columns.count(name) > 1}):
                    raise UsageError(f"{path}: the column {repeated[0]!r} is there twice; name each column once")
                continue
            place = f"{path}: line {reader.line_num}"
            if len(values) != len(columns):
                raise UsageError(
                    f"{place}: {len(values)} fields where the header has {len(columns)}; put a caption that holds "
                    f"{delimiter!r} in double quotes"
                )
            yield Row(place, dict(zip(columns, values, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: not valid CSV ({error}); write the file again") from error


def _plain_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield Row(f"{path}: line {number}", {"id": number, "caption": line.removesuffix("\r")}, form="plain")


def _tabbed_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            image, _, caption = line.removesuffix("\r").partition("\t")
            yield Row(f"{path}: line {number}", {"file": image, "caption": caption}, form="tabbed")


def _is_tabbed(text: str) -> bool:
    """Whether every line that is not blank has a tab after its first field."""
    lines = [line for line in text.split("\n") if line.strip()]
    return all(line.find("\t") > 0 for line in lines)


def _is_header(line: str) -> bool:
    return _names_a_caption(line.split("\t"))


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _row(place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise UsageError(f'{place}: expected an object such as {{"image_id": 1, "caption": "…"}}')
    return Row(place, {str(name).strip().lower(): field for name, field in value.items()})


def _is_row(document: dict[str, object]) -> bool:
    return _names_a_caption(document)


def _names_a_caption(columns: Iterable[str]) -> bool:
    names = {name.strip().lower() for name in columns}
    return not names.isdisjoint(ID_COLUMNS) and not names.isdisjoint(TEXT_COLUMNS)
