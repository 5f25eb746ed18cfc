"""``grrcoca prepare cc12m``: from a file of addresses and captions to img2dataset's command, and what came of it."""

import json
import math
import os
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grrcoca_cli.commands.prepare import make_index, summary
from grrcoca_cli.console import Progress, say
from grrcoca_cli.errors import ExitCode, UsageError
from grrcoca_cli.files import explain_os_errors, open_atomically

SHARD = 10_000
"""Rows of a shard, img2dataset's own choice."""

_MOST_BAD = 0.01  # share of rows without an address above which a file is another kind of file


@dataclass(frozen=True)
class Options:
    """Flags of ``prepare cc12m``.

    Attributes:
        urls: Rows of address, TAB, caption; CC12M's file has no header.
        out: Folder of the shards.
        image_size: Edge of the shorter side that pictures are resized to, in pixels.
        processes: Of img2dataset.
        threads: Of each of them.
        run: Download now.
        check: Look at what came back.
    """

    urls: Path
    out: Path
    image_size: int = 256
    processes: int = 16
    threads: int = 64
    run: bool = False
    check: bool = False


def prepare_cc12m(options: Options, *, as_json: bool) -> ExitCode:
    """Print the command line that downloads; or run it; or check what it brought and index that.

    Raises:
        UsageError: The file is not of addresses and captions, img2dataset is not installed, or it failed.
    """
    table = options.out.with_name(f"{options.out.name}.urls.tsv")
    rows, left_out = _copy_rows(options.urls, None if options.check else table)
    words = _command(options, table)
    if not options.check:
        if left_out:
            say(f"warning: {left_out} rows without an address or a caption are left out")
        if not options.run:
            if as_json:
                print(json.dumps({"schema": 1, "rows": rows, "left_out": left_out, "command": words}))
            else:
                say(f"{rows} rows, in {table} with the header that img2dataset needs. To download them:")
                print(shlex.join(words))
            return ExitCode.OK
        _run(words)
    return _check(options.out, rows, as_json=as_json)


def _command(options: Options, table: Path) -> list[str]:
    return [
        *("img2dataset", "--url_list", str(table), "--input_format", "tsv"),
        *("--url_col", "url", "--caption_col", "caption"),
        *("--output_format", "webdataset", "--output_folder", str(options.out)),
        *("--image_size", str(options.image_size), "--resize_mode", "border"),
        *("--number_sample_per_shard", str(SHARD)),
        *("--processes_count", str(options.processes), "--thread_count", str(options.threads)),
    ]


def _copy_rows(urls: Path, target: Path | None) -> tuple[int, int]:
    """Count the rows of ``urls`` that are in order and those that are not; write the former to ``target``."""
    if not urls.is_file():
        raise UsageError(f"no file {urls}: cc12m.tsv is at github.com/google-research-datasets/conceptual-12m")
    good = bad = 0
    if target is not None:
        with explain_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(target) if target is not None else Path(os.devnull).open("wb") as file:
        file.write(b"url\tcaption\n")
        for row in _rows(urls):
            good, bad = good + bool(row), bad + (not row)
            file.write(row)
        if not good or bad > _MOST_BAD * (good + bad):
            raise UsageError(
                f"{urls}: {bad} of {good + bad} rows are not an address, a tab and a caption: give CC12M's cc12m.tsv "
                "or a file like it"
            )
    return good, bad


def _rows(urls: Path) -> Iterator[bytes]:
    """Each row as img2dataset's reader takes it, empty for one that is no address and caption; a header is no row."""
    with urls.open("rb") as file:
        for number, line in enumerate(file):
            url, tab, caption = line.rstrip(b"\r\n").partition(b"\t")
            if number == 0 and url.removeprefix(b"\xef\xbb\xbf").strip().lower() == b"url":
                continue
            if not tab or not url.startswith((b"http://", b"https://")) or not caption.strip():
                yield b""
                continue
            # A quote at a field's start would open a quoted field, which runs on to the next quote in the file.
            fields = (b'"' + each.replace(b'"', b'""') + b'"' if b'"' in each else each for each in (url, caption))
            yield b"\t".join(fields) + b"\n"


def _run(words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        raise UsageError(
            f"img2dataset is not installed: pip install img2dataset, or run elsewhere: {shlex.join(words)}"
        )
    done = subprocess.run(words, check=False)
    if done.returncode:
        raise UsageError(f"img2dataset ended with code {done.returncode}: run the same command again, it goes on")


@dataclass
class _Obtained:
    """What img2dataset's statistics say, and what lies there."""

    shards: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    successes: dict[str, int] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)


def _check(out: Path, rows: int, *, as_json: bool) -> ExitCode:
    """Compare the shards in ``out`` with their statistics, and index those that are finished."""
    found = _obtained(out, rows)
    if not found.shards:
        raise UsageError(
            f"{out} holds no finished shard: run img2dataset first, its command line is printed without --check"
        )
    index = make_index(found.shards, out / "grrcoca-index.npz", processes=2)
    differing = {
        record.name: f"{record.samples} samples of {found.successes[record.name]}"
        for record in index.records
        if record.damaged or record.samples != found.successes[record.name]
    }
    obtained = sum(found.successes.values())
    result: dict[str, Any] = {
        "rows": rows,
        "obtained": obtained,
        "share": round(obtained / rows, 4),
        "failures": {status: count for status, count in found.statuses.most_common() if status != "success"},
        "missing": found.missing,
        "unfinished": found.unfinished,
        "differing": differing,
        **summary(index),
    }
    if as_json:
        print(json.dumps({"schema": 1, **result}))
    else:
        _show(result)
    return ExitCode.SOME_INPUTS_FAILED if found.missing or found.unfinished or differing else ExitCode.OK


def _obtained(out: Path, rows: int) -> _Obtained:
    found = _Obtained()
    expected = math.ceil(rows / _rows_per_shard(out))
    progress = Progress("checking", expected, "shards")
    for number in range(expected):
        name = f"{number:05d}"
        shard, stats = out / f"{name}.tar", out / f"{name}_stats.json"
        try:
            stated = json.loads(stats.read_bytes())
            found.successes[shard.name] = int(stated["successes"])
            found.statuses.update({str(status): int(count) for status, count in stated["status_dict"].items()})
        except FileNotFoundError:
            (found.unfinished if shard.exists() else found.missing).append(shard.name)
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found.unfinished.append(shard.name)
            continue
        (found.shards if shard.is_file() else found.missing).append(str(shard) if shard.is_file() else shard.name)
        progress.show(number + 1)
    progress.close()
    return found


def _rows_per_shard(out: Path) -> int:
    """What the first shard was made of: a download may have been started with another number than ours."""
    try:
        return max(1, int(json.loads((out / "00000_stats.json").read_bytes())["count"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return SHARD


def _show(result: dict[str, Any]) -> None:
    print(f"{result['obtained']} of {result['rows']} pictures ({result['share']:.1%}) in {result['shards']} shards")
    for status, count in list(result["failures"].items())[:10]:
        print(f"{count:>10}  {status}")
    for what, again in (("missing", "run img2dataset again"), ("unfinished", "run img2dataset again")):
        if names := result[what]:
            print(f"{what}: {', '.join(names[:10])}{' …' if len(names) > 10 else ''} ({len(names)}): {again}")
    for name, reason in result["differing"].items():
        print(f"{name}: {reason}: delete it and its _stats.json, and run img2dataset again")
    print(f"index: {result['index']}, {result['usable']} samples")
