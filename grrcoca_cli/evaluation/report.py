"""An evaluation as one HTML page: opens from a file, loads nothing, reads well in light and dark and on a phone."""

import base64
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from grrcoca_cli.evaluation.judge import Evaluation, Result
from grrcoca_cli.evaluation.statistics import MIN_RANKED

RANKING = "bleu4_smoothed"
"""What images are ranked by: it tells captions apart that share no 4-gram with a reference."""

_BARS = 24
_WORD = re.compile(r"\w+(?:[.,-]\w+)*")


@dataclass(frozen=True)
class ReportImage:
    """One image's captions and scores.

    Attributes:
        id: As the caller named it.
        caption: The caption that was scored.
        references: What it was scored against.
        scores: By metric; `RANKING` decides the order.
        conflicts: Kinds of clinical proxies in conflict.
        other: The caption it was compared with, or None.
    """

    id: str
    caption: str
    references: tuple[str, ...]
    scores: Mapping[str, float]
    conflicts: tuple[str, ...] = ()
    other: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of the metrics table: places are shares of the plot's width, None where there is nothing to draw."""

    label: str
    result: Result
    headline: bool
    at: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts between equal steps from ``low`` to ``high``; heights are shares of the fullest."""

    label: str
    low: float
    high: float
    heights: tuple[float, ...]
    counts: tuple[int, ...]


def render_report(
    evaluation: Evaluation,
    images: Sequence[ReportImage],
    *,
    what: str,
    labels: Mapping[str, str],
    headlines: Sequence[str],
    settings: Mapping[str, str],
    thumbnail: Callable[[str], bytes | None] = lambda image: None,
    compared_with: str | None = None,
    shown: int = 12,
    seed: int = 0,
) -> str:
    """The page.

    Args:
        evaluation: What was found.
        images: Every scored image.
        what: A line that says what was scored on what.
        labels: Names of metrics for people.
        headlines: Metrics that stand at the top, as far as they are there.
        settings: How it was evaluated, for the foot of the page.
        thumbnail: A small PNG or JPEG of an image by its id, asked only for those that are shown.
        compared_with: Name of the other captions.
        shown: Count of the worst, the best and some random images.
        seed: Draws the random ones.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    ranked = sorted(images, key=lambda image: (image.scores.get(RANKING, 0.0), image.id))
    rest = random.Random(seed).sample(ranked, min(shown, len(ranked)))
    groups = [("Worst", ranked[:shown]), ("Best", ranked[::-1][:shown]), ("Random", rest)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "data_url": _data_url}
    return environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        rows=_rows(evaluation, labels, headlines),
        histograms=_histograms(images, labels),
        sections=[(name, [_card(image, thumbnail(image.id)) for image in chosen]) for name, chosen in groups],
        group_metrics=[name for name in headlines if evaluation.groups and name in evaluation.groups[0].values],
        ranked_from=MIN_RANKED,
        labels=labels,
        what=what,
        settings=settings,
        compared_with=compared_with,
    )


def _rows(evaluation: Evaluation, labels: Mapping[str, str], headlines: Sequence[str]) -> list[Row]:
    return [
        _placed(labels.get(name, name), result, name in headlines)
        for name, result in evaluation.results.items()
        if name in headlines or not name.endswith("_conflict")
    ]


def _placed(label: str, result: Result, headline: bool) -> Row:
    """Where value, interval and floor stand on a line that just holds them."""
    low_end, high_end = (result.interval.low, result.interval.high) if result.interval else (None, None)
    marks = [value for value in (result.value, low_end, high_end, result.floor) if value is not None]
    if result.value is None or len(marks) < 2 or min(marks) == max(marks):
        return Row(label, result, headline)
    low, span = min(marks), max(marks) - min(marks)

    def place(value: float | None) -> float | None:
        return None if value is None else 4 + 92 * (value - low) / span

    places = (place(result.value), place(low_end), place(high_end), place(result.floor))
    return Row(label, result, headline, *places)


def _histograms(images: Sequence[ReportImage], labels: Mapping[str, str]) -> list[Histogram]:
    columns: dict[str, list[float]] = {
        labels.get(name, name): [image.scores[name] for image in images if name in image.scores]
        for name in ("cider_d", "rouge_l", RANKING)
    }
    columns["words in a caption"] = [float(len(image.caption.split())) for image in images]
    return [_histogram(label, values) for label, values in columns.items() if values]


def _histogram(label: str, values: Sequence[float]) -> Histogram:
    low, high = min(values), max(values)
    step = (high - low) / _BARS or 1.0
    counts = [0] * _BARS
    for value in values:
        counts[min(int((value - low) / step), _BARS - 1)] += 1
    return Histogram(label, low, high, tuple(count / max(counts) for count in counts), tuple(counts))


def _card(image: ReportImage, picture: bytes | None) -> dict[str, object]:
    """What the page shows of an image, agreeing words marked."""
    said, wanted = _words(image.caption), {word for reference in image.references for word in _words(reference)}
    return {
        "image": image,
        "picture": picture,
        "caption": _marked(image.caption, wanted),
        "references": [_marked(reference, said) for reference in image.references],
        "other": None if image.other is None else _marked(image.other, wanted),
    }


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _marked(text: str, agreeing: set[str]) -> Markup:
    """The text, escaped, with the words of ``agreeing`` in ``<mark>``."""
    pieces, at = [], 0
    for found in _WORD.finditer(text):
        pieces.append(escape(text[at : found.start()]))
        word = escape(found.group())
        pieces.append(Markup("<mark>{}</mark>").format(word) if found.group().lower() in agreeing else word)
        at = found.end()
    return Markup("").join([*pieces, escape(text[at:])])


def _number(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return _number(value) if value is None or value <= 0 else f"+{_number(value)}"


def _data_url(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
