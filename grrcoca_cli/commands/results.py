"""How an evaluation is written: JSON for programs, one row per image for a closer look."""

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


def as_json(
    result: Evaluation,
    what: str = "",
    settings: Mapping[str, Any] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result under its schema; with what was scored, how, and the provenance."""
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
        "provenance": dict(made_with or {}),
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
