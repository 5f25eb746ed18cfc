"""How an evaluation is shown: tables for people, JSON for programs, a row an image for whoever looks closer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.clinical import KINDS
from grrcoca_cli.evaluation.statistics import MIN_RANKED
from grrcoca_cli.files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

    from grrcoca_cli.evaluation.judge import Evaluation, Result

SCHEMA = 2
LABELS = {
    "contrastive_loss": "contrastive loss",
    "caption_loss": "caption loss",
    "coca_loss": "CoCa loss",
    "ppl_token": "perplexity (token)",
    "ppl_word": "perplexity (word)",
    "bits_per_byte": "bits per byte",
    **{
        f"{one}_to_{other}_r{k}": f"{one} to {other} R@{k}"
        for one, other in (("image", "text"), ("text", "image"))
        for k in (1, 5, 10)
    },
    "image_to_text_median_rank": "image to text, rank",
    "text_to_image_median_rank": "text to image, rank",
    "ece": "calibration error (ECE)",
    "spearman_logprob_cider": "confidence with CIDEr",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "imageclef_rouge1": "ROUGE-1 (ImageCLEF)",
    "chrf": "chrF",
    "bleu4_java": "BLEU-4, Java tokenizer",
    "rouge_l_java": "ROUGE-L, Java tokenizer",
    "cider_d_java": "CIDEr-D, Java tokenizer",
    **{f"{kind}_conflict": f"{kind} conflicts (proxy)" for kind in KINDS},
}
PROXIES = tuple(f"{kind}_conflict" for kind in KINDS)


def as_json(result: Evaluation, what: str = "", settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The result under its schema; with what was scored, and how."""
    return {
        "schema": SCHEMA,
        "subject": what,
        "settings": dict(settings or {}),
        "samples": result.images,
        "metrics": {name: _metric(found) for name, found in result.results.items()},
        "groups": [
            {"name": group.name, "images": group.images, "ranked": group.images >= MIN_RANKED, "values": group.values}
            for group in result.groups
        ],
        "clinical_proxies": result.clinical.as_json(),
        "diversity": result.diversity,
        "notes": list(result.notes),
        "signature": result.signature,
    }


def _metric(found: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"value": found.value, "interval": None}
    if found.interval is not None:
        row["interval"] = [found.interval.low, found.interval.high]
    if found.floor is not None:
        row["random_caption"] = found.floor
    if found.other is not None:
        row["other"] = found.other
    if found.difference is not None:
        change = found.difference
        interval = None if change.interval is None else [change.interval.low, change.interval.high]
        row["difference"] = {"value": change.value, "interval": interval, "p": change.p}
    return row


def per_image_rows(
    result: Evaluation, predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """A row an image: caption, references, scores, conflicts."""
    return [
        {
            "id": image,
            "caption": predictions.get(image, ""),
            "references": list(references[image]),
            **result.per_image[image],
            "conflicts": list(result.clinical.per_image[image]),
        }
        for image in result.ids
    ]


def kind_of_rows(path: Path) -> str:
    """The extension that says how `write_rows` writes: ``.csv`` or ``.jsonl``.

    Raises:
        UsageError: Another one.
    """
    if (kind := path.suffix.lower()) not in (".csv", ".jsonl"):
        raise UsageError(f"{path}: name it .csv or .jsonl")
    return kind


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as JSON Lines or CSV, by the file's extension; in CSV lists are joined by `` | ``.

    Raises:
        UsageError: Another extension.
    """
    if kind_of_rows(path) == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
        text = stream.getvalue()
    write_atomically(path, text)


def _cell(value: object) -> object:
    return " | ".join(map(str, value)) if isinstance(value, list) else value


def show_tables(result: Evaluation) -> None:
    """Print metrics, comparison, conflicts and groups as tables on stdout, notes and signature below."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.print(_metrics_table(result))
    if any(found.difference for found in result.results.values()):
        console.print(_comparison_table(result))
    if any(proxy.comparable for proxy in result.clinical.kinds.values()):
        console.print(_proxies_table(result))
    if result.groups:
        console.print(_groups_table(result))
    shape = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in result.diversity.items())
    console.print(f"captions: {shape}", markup=False, highlight=False)
    for note in result.notes:
        console.print(f"· {note}", markup=False, highlight=False)
    console.print(result.signature, style="dim", markup=False, highlight=False)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _metrics_table(result: Evaluation) -> Table:
    table = _table(f"{result.images} images", "metric", "value", "95 % interval", "random caption")
    for name, found in result.results.items():
        if name not in PROXIES:
            floor = _number(found.floor, "")
            table.add_row(LABELS.get(name, name), _number(found.value), _interval(found.interval), floor)
    return table


def _comparison_table(result: Evaluation) -> Table:
    table = _table("against the other captions, on the same images", "metric", "other", "ours less it", "95 %", "p")
    for name, found in result.results.items():
        if (change := found.difference) is not None:
            interval = _interval(change.interval, sign=True)
            cells = [_number(found.other), _number(change.value, sign=True), interval, f"{change.p:.4f}"]
            table.add_row(LABELS.get(name, name), *cells)
    return table


def _proxies_table(result: Evaluation) -> Table:
    columns = ("kind", "conflicts", "rate", "mentions right", "mentions found")
    table = _table("conflicts with the references (a proxy)", *columns)
    for kind, proxy in result.clinical.kinds.items():
        table.add_row(
            kind,
            f"{proxy.conflicts} of {proxy.comparable}",
            _number(proxy.rate),
            f"{proxy.supported} of {proxy.said}",
            f"{proxy.supported} of {proxy.wanted}",
        )
    return table


def _groups_table(result: Evaluation) -> Table:
    from rich.markup import escape

    shown = [name for name in ("caption_loss", "bleu4", "rouge_l", "cider_d") if name in result.groups[0].values]
    table = _table("groups", "group", "images", *(LABELS[name] for name in shown))
    for group in result.groups:
        name = escape(group.name) + ("" if group.images >= MIN_RANKED else " (too few to rank)")
        table.add_row(name, str(group.images), *(_number(group.values[metric]) for metric in shown))
    return table


def _number(value: float | None, absent: str = "-", *, sign: bool = False) -> str:
    return absent if value is None else f"{value:+.4f}" if sign else f"{value:.4f}"


def _interval(interval: Any, *, sign: bool = False) -> str:
    return "" if interval is None else f"{_number(interval.low, sign=sign)} … {_number(interval.high, sign=sign)}"
