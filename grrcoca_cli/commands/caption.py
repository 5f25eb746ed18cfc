"""``grrcoca caption``: files in, captions out; a file that fails does not stop the others."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from grrcoca_cli.config import GenerationConfig, apply_settings, build_recipe
from grrcoca_cli.console import ProgressLine, say
from grrcoca_cli.errors import ExitCode, NotAnImage, StoppedAndSaved, UnreadableImage, UsageError
from grrcoca_cli.files import explain_os_errors
from grrcoca_cli.signals import StopRequest

if TYPE_CHECKING:
    from grrcoca_cli.captioner import Captioner

SCHEMA = 1
FORMATS = ("text", "jsonl", "csv")
COLUMNS = ("file", "caption", "logprob", "model", "error")
BATCH = 8
NOTICE = "Captions are research output of a model: not a diagnosis, not for clinical use."


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    paths: Sequence[Path]
    checkpoint: Path | None
    format: str
    out: Path | None
    settings: Sequence[str]
    device: str


def caption(options: Options) -> ExitCode:
    """Caption every file; gives the exit code.

    Raises:
        UsageError: A path does not exist, or a flag is wrong.
        StoppedAndSaved: Interrupted with ``--out``; the rows so far are in the file.
    """
    if options.format not in FORMATS:
        raise UsageError(f"--format {options.format}: choose {', '.join(FORMATS)}")
    for path in options.paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
    checkpoint = options.checkpoint or default_checkpoint()
    settings = _generation(options.settings)

    from grrcoca_cli.captioner import Captioner

    captioner = Captioner.load(checkpoint, options.device)
    chosen = captioner.checkpoint.config.generation.model_dump() | settings
    generation = build_recipe({"generation": chosen}, "--set").generation
    say(f"captioning with {captioner.checkpoint.folder}\n{NOTICE}")

    done = _finished_files(options.out, options.format) if options.out else set()
    files = [file for file in find_files(options.paths) if str(file.path) not in done]
    if done:
        say(f"{options.out} holds {len(done)} of the files already; going on behind them")
    with ExitStack() as stack:
        stream = sys.stdout
        if options.out:
            with explain_os_errors(options.out):
                options.out.parent.mkdir(parents=True, exist_ok=True)
                stream = stack.enter_context(options.out.open("a", encoding="utf-8", newline=""))
        writer = RowWriter(stream, options.format, header=not done)
        stop = stack.enter_context(StopRequest()) if options.out else None
        counts = _caption_files(captioner, files, generation, writer, stop)
    return _summary(counts)


@dataclass(frozen=True)
class InputFile:
    """A file to caption; ``named`` by the user, or met while walking a folder."""

    path: Path
    named: bool


def find_files(paths: Iterable[Path]) -> Iterator[InputFile]:
    """Named files and every file below named folders, in the order of their names; hidden ones are passed over."""
    for path in paths:
        if not path.is_dir():
            yield InputFile(path, named=True)
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (InputFile(Path(folder) / name, named=False) for name in sorted(names) if name[0] != ".")


def _caption_files(
    captioner: Captioner,
    files: Sequence[InputFile],
    generation: GenerationConfig,
    writer: RowWriter,
    stop: StopRequest | None,
) -> Counter[str]:
    """Read, caption and write in batches; counts of ``captioned``, ``failed`` and ``skipped`` files."""
    from grrcoca_cli.training.checkpoint import checkpoint_hash

    model = checkpoint_hash(captioner.checkpoint.folder)
    counts: Counter[str] = Counter()
    progress = ProgressLine()
    for start in range(0, len(files), BATCH):
        rows: list[dict[str, Any]] = []
        pixels = []
        for file in files[start : start + BATCH]:
            if stop is not None and stop():
                raise StoppedAndSaved("stopped; the rows so far are kept: run the same command to go on")
            row: dict[str, Any] = {"schema": SCHEMA, "file": str(file.path)}
            try:
                pixels.append(captioner.read(file.path))
            except UnreadableImage as error:
                if isinstance(error, NotAnImage) and not file.named:
                    counts["skipped"] += 1
                    continue
                counts["failed"] += 1
                progress.close()
                say(f"{file.path}: {error}")
                row["error"] = str(error)
            rows.append(row)
        captions = iter(captioner.caption_pixels(pixels, generation, seed_offset=start) if pixels else [])
        for row in rows:
            if "error" not in row:
                found = next(captions)
                counts["captioned"] += 1
                row |= {"caption": found[0].text, "logprob": round(found[0].logprob, 4), "model": model}
                if len(found) > 1:
                    row["captions"] = [{"caption": c.text, "logprob": round(c.logprob, 4)} for c in found]
            writer.write(row)
        if len(files) > BATCH:
            progress.show(f"{min(start + BATCH, len(files))}/{len(files)} files")
    progress.close()
    return counts


def _summary(counts: Counter[str]) -> ExitCode:
    if counts["skipped"]:
        say(f"skipped {counts['skipped']} files that are neither DICOM nor pictures")
    if counts["failed"]:
        say(f"{counts['captioned']} captioned, {counts['failed']} failed")
        return ExitCode.SOME_INPUTS_FAILED
    if not counts["captioned"] and counts["skipped"]:
        say("nothing to caption: no DICOM file and no picture among the files")
        return ExitCode.SOME_INPUTS_FAILED
    return ExitCode.OK


class RowWriter:
    """Writes result rows as text, JSON Lines or CSV, each flushed as soon as it is known.

    Text is ``file<TAB>caption``, one line a caption; failed files have no line there, since stderr names them.
    """

    def __init__(self, stream: TextIO, kind: str, *, header: bool) -> None:
        self.stream = stream
        self.kind = kind
        if kind == "csv" and header:
            self._write_csv(COLUMNS)

    def write(self, row: dict[str, Any]) -> None:
        """Write one file's result."""
        if self.kind == "jsonl":
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        elif self.kind == "csv":
            self._write_csv([row.get(column, "") for column in COLUMNS])
        elif "error" not in row:
            for found in row.get("captions", [row]):
                self.stream.write(f"{row['file']}\t{found['caption']}\n")
        self.stream.flush()

    def _write_csv(self, cells: Iterable[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.stream.write(line.getvalue())


def _finished_files(out: Path, kind: str) -> set[str]:
    """Files that an earlier start of the same command already wrote to ``out``; a line cut by a kill is removed."""
    if not out.exists():
        return set()
    with explain_os_errors(out):
        content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    text = whole.decode("utf-8", errors="replace")
    try:
        if kind == "jsonl":
            done = {str(json.loads(line)["file"]) for line in text.splitlines()}
        elif kind == "csv":
            done = {row["file"] for row in csv.DictReader(io.StringIO(text, newline=""))}
        else:
            done = {line.split("\t")[0] for line in text.splitlines() if line.index("\t")}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out} exists and is not this command's {kind} output: choose another --out") from error
    with explain_os_errors(out):
        os.truncate(out, len(whole))
    return done


def _generation(settings: Sequence[str]) -> dict[str, Any]:
    tables = apply_settings({}, settings)
    if other := sorted(set(tables) - {"generation"}):
        raise UsageError(f"--set {other[0]}.…: caption takes generation.* only; the rest is the checkpoint's")
    given: dict[str, Any] = tables.get("generation", {})
    build_recipe({"generation": {name: given[name] for name in given}}, "--set")
    return given


def default_checkpoint() -> Path:
    """``$GRRCOCA_CHECKPOINT``, else the newest finished run below ``./runs``.

    Raises:
        UsageError: There is neither.
    """
    if named := os.environ.get("GRRCOCA_CHECKPOINT"):
        return Path(named)
    from grrcoca_cli.training.runfolder import newest_finished_run

    run = newest_finished_run(Path("runs"))
    if run is None:
        raise UsageError(
            "no checkpoint: give --checkpoint, set GRRCOCA_CHECKPOINT, or make one in minutes with `grrcoca demo`"
        )
    return run
