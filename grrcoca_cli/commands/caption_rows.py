"""The forms in which ``grrcoca caption`` gives its results, and how it goes on behind an interrupted run's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from grrcoca_cli.console import plain
from grrcoca_cli.errors import UsageError
from grrcoca_cli.files import explain_os_errors, write_atomically, write_json

SCHEMA = 2
FORMATS = ("text", "jsonl", "csv", "fhir", "sr")
COLUMNS = (
    *("file", "frame", "frame_read", "frames", "slice", "slices", "caption", "logprob", "model", "model_hash"),
    *("modality", "transfer_syntax", "window", "warnings", "error"),
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


def finished(out: Path, kind: str, made_with: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> set[str]:
    """Keys of the results that an earlier start of the same command wrote.

    A line that was cut by a kill is removed, and so are rows of failures, which are tried again. What the rows were
    made with is in ``OUT.state`` beside them; without it, a file that is not empty is somebody's own. ``about`` is
    kept there as well, of the first start, and is not compared.

    Raises:
        UsageError: The file is something else, or was made with other settings.
    """
    state = _state_of(out)
    if not out.exists() or out.stat().st_size == 0:
        write_json(state, {**made_with, **(about or {})})
        return set()
    try:
        earlier = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{out} is there, and {state.name} beside it does not say that this command wrote it: choose another --out"
        ) from None
    if different := [name for name in made_with if earlier.get(name) != made_with[name]]:
        raise UsageError(f"{out} was made with another {', '.join(different)}: choose another --out, or repeat it")
    with explain_os_errors(out):
        content = out.read_bytes()
    text = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    try:
        kept, done = _without_failures(text, kind)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{out} is damaged: move it away to start again") from error
    if kept.encode() != content:
        write_atomically(out, kept)
    return done


def _state_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.state")


def _without_failures(text: str, kind: str) -> tuple[str, set[str]]:
    """The output without rows of failures, and the keys of the rest."""
    if kind == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if not row["error"]]
        writer.writerows(rows)
        return stream.getvalue(), {key_of(row) for row in rows}
    lines = text.splitlines(keepends=True) if kind == "text" else text.split("\n")[:-1]
    if kind == "text":
        return text, {line.split("\t")[0] for line in lines}
    entries = [(line + "\n", json.loads(line)) for line in lines]
    if kind == "fhir":
        return text, {entry["identifier"][0]["value"] for _, entry in entries}
    kept = [(line, key_of(entry)) for line, entry in entries if "error" not in entry]
    return "".join(line for line, _ in kept), {key for _, key in kept}
