"""The forms in which ``grrcoca caption`` gives its results, and how it goes on behind an interrupted run's."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from grrcoca_cli.console import plain
from grrcoca_cli.errors import UsageError
from grrcoca_cli.files import explain_os_errors

SCHEMA = 2
FORMATS = ("text", "jsonl", "csv", "fhir", "sr")
COLUMNS = (
    "file",
    "frame",
    "slice",
    "caption",
    "logprob",
    "model",
    "model_hash",
    "modality",
    "window",
    "warnings",
    "error",
)

Row = Mapping[str, Any]


class RowWriter:
    """Writes result rows, each flushed as soon as it is known.

    ``text`` is ``file<TAB>caption``, one line a caption; failed files have no line there, nor in ``fhir``, since stderr
    names them. ``fhir`` is a resource a line.

    Args:
        stream: Where to.
        kind: ``text``, ``jsonl``, ``csv`` or ``fhir``.
        header: Whether CSV begins with its columns.
        report: Makes a FHIR resource of a row.
    """

    def __init__(
        self, stream: TextIO, kind: str, *, header: bool, report: Callable[[Row], dict[str, Any]] | None = None
    ) -> None:
        self.stream = stream
        self.kind = kind
        self.report = report
        if kind == "csv" and header:
            self._write_csv(COLUMNS)

    def write(self, row: Row) -> None:
        """Write one picture's result."""
        if self.kind == "jsonl":
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        elif self.kind == "csv":
            self._write_csv([_cell(row.get(column, "")) for column in COLUMNS])
        elif "error" not in row and self.report is not None:
            self.stream.write(json.dumps(self.report(row), ensure_ascii=False) + "\n")
        elif "error" not in row:
            for found in row.get("captions", [row]):
                self.stream.write(f"{plain(key_of(row))}\t{found['caption']}\n")
        self.stream.flush()

    def _write_csv(self, cells: Iterable[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.stream.write(line.getvalue())


def _cell(value: object) -> object:
    return "; ".join(value) if isinstance(value, list) else value


def key_of(row: Row) -> str:
    """What tells one result from another: the file, and the frame where several are read."""
    return f"{row['file']}#{row['frame']}" if row.get("frame") not in (None, "") else str(row["file"])


def finished(out: Path, kind: str) -> set[str]:
    """Keys of the results that an earlier start of the same command wrote; a line cut by a kill is removed.

    Raises:
        UsageError: The file is there and is something else.
    """
    if not out.exists():
        return set()
    with explain_os_errors(out):
        content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    text = whole.decode("utf-8", errors="replace")
    try:
        if kind == "jsonl":
            done = {key_of(json.loads(line)) for line in text.splitlines()}
        elif kind == "csv":
            done = {key_of(row) for row in csv.DictReader(io.StringIO(text, newline=""))}
        elif kind == "fhir":
            done = {json.loads(line)["identifier"][0]["value"] for line in text.splitlines()}
        else:
            done = {line.split("\t")[0] for line in text.splitlines() if line.index("\t")}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{out} exists and is not this command's {kind} output: choose another --out") from error
    with explain_os_errors(out):
        os.truncate(out, len(whole))
    return done
