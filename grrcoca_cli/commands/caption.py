"""``grrcoca caption``: files in, captions out; a file that fails does not stop the others."""

from __future__ import annotations

import hashlib
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from grrcoca_cli import __version__
from grrcoca_cli.commands.caption_rows import FORMATS, SCHEMA, Row, RowWriter, finished, key_of
from grrcoca_cli.config import DistributedConfig, GenerationConfig, apply_settings, build_recipe
from grrcoca_cli.console import Progress, plain, say
from grrcoca_cli.errors import ExitCode, NotAnImage, StoppedAndSaved, UnreadableImage, UsageError
from grrcoca_cli.files import check_output_file, explain_os_errors, make_folder, sha256_of, write_atomically
from grrcoca_cli.provenance import provenance
from grrcoca_cli.signals import StopRequest
from grrcoca_cli.training.checkpoint import checkpoint_hash, find_checkpoint, read_config, weights_sha256
from grrcoca_cli.training.ranks import join_ranks
from medical.sources import ImageInput

if TYPE_CHECKING:
    from grrcoca_cli.captioner import Caption, Captioner
    from medical import RadiologyImage

BATCH = 8
WORKERS = 2
NOTICE = "Captions are research output of a model: not a diagnosis, not for clinical use."
NAMES = ("path", "hash", "index")

PASSED_OVER = "passed over: "
"""Begins the kinds, among the counts, of what is DICOM and no picture to caption."""

Write = Callable[["Task", dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """The command's flags; an empty format is that of the output's suffix."""

    paths: Sequence[Path | str]
    checkpoint: Path | None = None
    format: str = ""
    out: Path | None = None
    frame: str = "auto"
    window: str = ""
    series: bool = False
    name_by: str = "path"
    with_identity: bool = False
    settings: Sequence[str] = ()
    device: str = "auto"


@dataclass(frozen=True)
class Task:
    """One picture to caption: an input, the frame of it, and what a row calls it."""

    input: ImageInput
    frame: int | str
    row: dict[str, Any]


def caption(options: Options) -> ExitCode:
    """Caption every file; gives the exit code.

    Raises:
        UsageError: A path does not exist, or a flag is wrong.
        StoppedAndSaved: Interrupted with ``--out``; the rows so far are in the file.
    """
    options = replace(options, format=_format_of(options))
    _check(options)
    folder = find_checkpoint(options.checkpoint or default_checkpoint())
    config = read_config(folder)
    settings = _generation(options.settings)
    generation = build_recipe({"generation": config.generation.model_dump() | settings}, "--set").generation

    out_file = options.out if options.format != "sr" else None
    with ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(DistributedConfig().timeout))

        def find() -> tuple[list[Task], Counter[str], int]:
            counts: Counter[str] = Counter()
            tasks = list(_tasks(options, counts))
            counts["known"] = len(tasks)
            made_with = _made_with(options, folder, generation, tasks)
            about = {"provenance": _provenance(folder, made_with)}
            done = finished(out_file, options.format, made_with, about) if out_file else set()
            left = [task for task in tasks if _known_as(task, options) not in done] if done else tasks
            return left, counts, len(done)

        tasks, counts, done = ranks.agree(find)
        if done:
            say(f"{options.out} holds {done} of the results already; going on behind them")
        batches = [tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)]
        own = batches[ranks.rank :: ranks.size]
        window = options.window or config.image.window
        pictures = _pictures([task for batch in own for task in batch], None if window == "auto" else window)
        reading = stack.enter_context(ThreadPoolExecutor(1))
        first = reading.submit(next, pictures, None)  # workers start and read while this thread imports torch

        from grrcoca_cli.captioner import Captioner

        captioner = Captioner.load(folder, options.device)
        say(f"captioning with {captioner.checkpoint.folder}\n{NOTICE}")
        model = {"model": f"{config.model.variant} {config.model.size}", "model_hash": checkpoint_hash(folder)}
        # Of several processes the first one writes.
        write = stack.enter_context(_writer(options, model, header=not done)) if ranks.is_first else None
        stop = stack.enter_context(StopRequest()) if options.out else None
        newest = first.result()
        found = chain([] if newest is None else [newest], pictures)
        progress = stack.enter_context(Progress("captioning", len(tasks), "images"))
        for turn in range(math.ceil(len(batches) / ranks.size)):
            if ranks.any(stop is not None and stop()):
                raise StoppedAndSaved("stopped; the rows so far are kept: run the same command to go on")
            batch = own[turn] if turn < len(own) else []
            start = (turn * ranks.size + ranks.rank) * BATCH
            captioned = _caption_batch(captioner, generation, model, list(zip(batch, found, strict=False)), start)
            for part in ranks.gather(captioned):
                if write is not None:
                    _write_rows(write, part, counts, progress)
            if len(batches) > 1:
                progress.show(min((turn + 1) * ranks.size * BATCH, len(tasks)))
        progress.close()
        return ranks.agree(lambda: _summary(counts))


def _made_with(options: Options, folder: Path, generation: GenerationConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """What the rows of an output depend on, to tell whether another start may go on behind them."""
    made_with: dict[str, Any] = {
        "schema": SCHEMA,
        "format": options.format,
        "checkpoint": checkpoint_hash(folder),
        "generation": generation.model_dump(),
        "frame": options.frame,
        "window": options.window,
        "series": options.series,
        "id": options.name_by,
    }
    if options.name_by == "index":  # which file a number means
        names = "\n".join(task.input.name for task in tasks)
        made_with["files"] = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    return made_with


def _provenance(folder: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    checkpoint = {"path": str(folder.resolve()), "weights_sha256": weights_sha256(folder)}
    return provenance({name: made_with[name] for name in ("generation", "frame", "window")}, checkpoint=checkpoint)


def _known_as(task: Task, options: Options) -> str:
    """How a finished result of a task is found again in the output."""
    return plain(key_of(task.row)) if options.format == "text" else key_of(task.row)


def _format_of(options: Options) -> str:
    """The format asked for, else that of the output's suffix, else text; says where the two differ."""
    by_suffix = {".csv": "csv", ".jsonl": "jsonl"}.get(options.out.suffix.lower(), "") if options.out else ""
    if options.format and by_suffix and options.format != by_suffix:
        say(f"note: {options.out} is written as {options.format}, as --format says")
    return options.format or by_suffix or "text"


def _check(options: Options) -> None:
    if options.format not in FORMATS:
        raise UsageError(f"--format {options.format}: choose {', '.join(FORMATS)}")
    if options.name_by not in NAMES:
        raise UsageError(f"--id {options.name_by}: choose {', '.join(NAMES)}")
    if options.frame not in ("auto", "first", "middle", "all") and not options.frame.isdecimal():
        raise UsageError(f"--frame {options.frame}: give a number from 0, first, middle, all or auto")
    if options.format == "sr" and not (options.with_identity and options.out):
        raise UsageError(
            "--format sr writes structured reports that carry the patient's identity, copied from the images: "
            "say --with-identity, and --out FOLDER"
        )
    if options.out and options.format != "sr":
        check_output_file(options.out)
    for path in options.paths:
        try:
            known = str(path) == "-" or (str(path) and Path(path).exists())
        except OSError as error:
            raise UsageError(f"{plain(str(path))[:80]}… cannot be opened: {error.strerror}") from error
        if not known:
            raise UsageError(f"{path or 'the empty path'} does not exist")
    if options.window:
        from medical.windows import parse_windows

        parse_windows(options.window)


def _tasks(options: Options, counts: Counter[str]) -> Iterator[Task]:
    """What to read, in order; series fall into volumes first, and what is no picture is reported."""
    from medical.sources import find_inputs

    inputs = list(find_inputs(options.paths))
    grouped = [options.series or item.grouped for item in inputs]
    namer = partial(_name, by=options.name_by)
    headers = _headers(inputs) if any(grouped) or options.frame == "all" else {}
    frame: int | str = int(options.frame) if options.frame.isdecimal() else options.frame
    if any(grouped):
        yield from _volume_tasks(inputs, grouped, headers, frame, namer, counts)
    for index, item in enumerate(inputs):
        if not grouped[index]:
            yield from _frame_tasks(index, item, headers.get(index), frame, namer)


def _headers(inputs: Sequence[ImageInput]) -> dict[int, Any]:
    """Header of each input by its index, or the `UnreadableImage` it gave."""
    from medical.guard import guarded_map
    from medical.series import read_header

    salt = os.urandom(16)
    readable = [index for index, item in enumerate(inputs) if item.refusal is None]
    found = guarded_map(read_header, [(inputs[index], salt) for index in readable], workers=WORKERS)
    return dict(zip(readable, found, strict=True))


def _volume_tasks(
    inputs: Sequence[ImageInput],
    grouped: Sequence[bool],
    headers: dict[int, Any],
    frame: int | str,
    namer: partial[str],
    counts: Counter[str],
) -> Iterator[Task]:
    """A slice of each volume (or all, or the one asked for); scouts and what is no picture are counted by kind."""
    from medical.series import choose, group_series

    members = [index for index in range(len(inputs)) if grouped[index]]
    volumes = group_series([inputs[index].refusal or headers[index] for index in members])
    for place, error in volumes.refused.items():
        index = members[place]
        yield Task(replace(inputs[index], refusal=error), "auto", {"file": namer(inputs[index], index)})
    if volumes.localizers:
        counts[f"{PASSED_OVER}localizer"] += len(volumes.localizers)
    for slices in volumes.volumes:
        if len(slices) == 1:
            index = members[slices[0]]
            yield from _frame_tasks(index, inputs[index], headers.get(index), frame, namer)
            continue
        try:
            places = choose(len(slices), frame)
        except UnreadableImage as error:  # of this volume alone
            index = members[slices[0]]
            yield Task(replace(inputs[index], refusal=error), "auto", {"file": namer(inputs[index], index)})
            continue
        for place in places:
            index = members[slices[place]]
            row = {"file": namer(inputs[index], index), "slice": place, "slices": len(slices)}
            yield Task(inputs[index], "auto", row)


def _frame_tasks(index: int, item: ImageInput, header: Any, frame: int | str, namer: partial[str]) -> Iterator[Task]:
    name = namer(item, index)
    if frame != "all":
        yield Task(item, frame, {"file": name})
        return
    frames = 1 if header is None or isinstance(header, UnreadableImage) else header.frames
    for number in range(frames):
        yield Task(item, number if frames > 1 else "auto", {"file": name, "frame": number})


def _name(item: ImageInput, index: int, *, by: str) -> str:
    """What a row calls its input: the path as given, the hash of its content, or its number."""
    if by == "path":  # bytes that are no UTF-8 cannot be written out as they are
        return item.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if by == "index":
        return str(index)
    from medical.sources import load

    try:
        source = item.refusal or load(item)
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()[:16]
        if isinstance(source, Path):
            return sha256_of(source)[:16]
    except (UnreadableImage, OSError):
        pass
    return f"unreadable-{index}"


def _pictures(tasks: Sequence[Task], window: str | None) -> Iterator[RadiologyImage | UnreadableImage]:
    """The picture of each task from guarded workers, or why there is none, in order."""
    from medical.guard import guarded_map
    from medical.sources import read_input

    readable = [(task.input, task.frame, window) for task in tasks if task.input.refusal is None]
    found = guarded_map(read_input, readable, workers=max(1, min(WORKERS, len(readable))))
    for task in tasks:
        yield task.input.refusal or next(found)


def _caption_batch(
    captioner: Captioner,
    generation: GenerationConfig,
    model: dict[str, str],
    pairs: Sequence[tuple[Task, RadiologyImage | UnreadableImage]],
    start: int,
) -> list[tuple[Task, dict[str, Any] | UnreadableImage]]:
    """Caption some pictures together: each one's row, or why there is none; ``start`` counts the pictures before."""
    pixels = [found.pixels for _, found in pairs if not isinstance(found, UnreadableImage)]
    captions = iter(captioner.caption_pixels(pixels, generation, seed_offset=start) if pixels else [])
    return [
        (
            task,
            found
            if isinstance(found, UnreadableImage)
            else _described({"schema": SCHEMA, **task.row}, next(captions), model, found),
        )
        for task, found in pairs
    ]


def _write_rows(
    write: Write,
    captioned: Sequence[tuple[Task, dict[str, Any] | UnreadableImage]],
    counts: Counter[str],
    progress: Progress,
) -> None:
    """Write rows, those of failures as well; counts ``captioned``, ``failed`` and ``skipped`` ones."""
    if sys.stdout.isatty():
        progress.hide()
    for task, found in captioned:
        if not isinstance(found, UnreadableImage):
            try:
                write(task, found)
                counts["captioned"] += 1
                continue
            except UnreadableImage as error:  # no structured report of it
                found = error
        if found.kind == "not an image" and not task.input.named:
            counts[_passed_over_as(task.input, found)] += 1
            continue
        counts["failed"] += 1
        row = {"schema": SCHEMA, **task.row}
        say(f"{plain(key_of(row))}: {found}")
        write(task, row | {"error": str(found)})


def _passed_over_as(item: ImageInput, found: UnreadableImage) -> str:
    """The kind by which a file that is no picture is counted; an archive may hold many."""
    if not isinstance(found, NotAnImage):
        return f"{PASSED_OVER}{found}"
    if item.path is not None and not item.member:
        with suppress(OSError), item.path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return f"{PASSED_OVER}zip archive in a folder: name it to have it opened"
    return "skipped"


def _described(
    row: dict[str, Any], captions: Sequence[Caption], model: dict[str, str], picture: RadiologyImage
) -> dict[str, Any]:
    """A row with its caption, its model, and what may be said of the picture."""
    what = picture.description
    row |= {"caption": captions[0].text, "logprob": round(captions[0].logprob, 4), **model}
    if what.frames > 1:
        row |= {"frame_read": what.frame_read, "frames": what.frames}
    row |= {"modality": what.modality, "transfer_syntax": what.transfer_syntax, "window": str(what.window)}
    if what.warnings:
        row["warnings"] = list(what.warnings)
    if len(captions) > 1:
        row["captions"] = [{"caption": c.text, "logprob": round(c.logprob, 4)} for c in captions]
    return row


@contextmanager
def _writer(options: Options, model: dict[str, str], *, header: bool) -> Iterator[Write]:
    """What takes the finished rows: a stream of lines, or a folder of structured reports."""
    if options.format == "sr":
        assert options.out is not None
        make_folder(options.out)
        yield partial(_write_sr, options.out, model)
        return
    with ExitStack() as stack:
        stream: TextIO = sys.stdout
        if options.out:
            with explain_os_errors(options.out):
                stream = stack.enter_context(options.out.open("a", encoding="utf-8", newline=""))
        report = partial(_fhir, model) if options.format == "fhir" else None
        rows = RowWriter(stream, options.format, header=header, report=report)

        def write(_: Task, row: dict[str, Any]) -> None:
            try:
                rows.write(row)
            except OSError:
                if options.out is None:
                    raise
                with explain_os_errors(options.out):
                    with suppress(OSError):
                        stream.close()  # which would try the same again at the end
                    raise

        yield write


def _fhir(model: dict[str, str], row: Row) -> dict[str, Any]:
    from medical.structured import fhir_report

    report = fhir_report(row["caption"], model=model["model"], model_hash=model["model_hash"], version=__version__)
    return {**report, "identifier": [{"value": key_of(row)}]}


def _write_sr(folder: Path, model: dict[str, str], task: Task, row: dict[str, Any]) -> None:
    """One structured report a picture, named by a hash of its own content: names of images may identify somebody."""
    if "error" in row:
        return
    from medical.sources import load
    from medical.structured import basic_text_sr

    source = load(task.input)
    report = basic_text_sr(source, row["caption"], **model, version=__version__, frame=row.get("frame_read"))
    stream = io.BytesIO()
    report.save_as(stream, enforce_file_format=True)
    name = hashlib.sha256(f"{row['file']}#{row.get('frame', '')}#{row['caption']}".encode()).hexdigest()[:16]
    write_atomically(folder / f"{name}.dcm", stream.getvalue())


def _summary(counts: Counter[str]) -> ExitCode:
    passed_over = {kind: count for kind, count in counts.items() if kind.startswith(PASSED_OVER)}
    for kind, count in sorted(passed_over.items()):
        say(f"not captioned: {count} x {kind.removeprefix(PASSED_OVER)}")
    if counts["skipped"]:
        say(f"skipped {counts['skipped']} files that are neither DICOM nor pictures")
    if counts["failed"]:
        say(f"{counts['captioned']} captioned, {counts['failed']} failed")
        return ExitCode.SOME_INPUTS_FAILED
    if not counts["captioned"] and (counts["skipped"] or passed_over or not counts["known"]):
        say("nothing to caption: no DICOM image and no picture among the files")
        return ExitCode.SOME_INPUTS_FAILED
    return ExitCode.OK


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
