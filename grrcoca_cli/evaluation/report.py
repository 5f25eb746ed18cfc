"""An evaluation as one HTML page: opens from a file, loads nothing, reads well in light and dark and on a phone."""

import base64
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from grrcoca_cli.evaluation.judge import Evaluation
from grrcoca_cli.evaluation.report_plots import Histogram, difference_plot, histogram, interval_plot
from grrcoca_cli.evaluation.report_text import DIVERSITY, Row, against_floor, compared, detail, in_short, verdict
from grrcoca_cli.evaluation.statistics import MIN_RANKED

RANKING = "bleu4_smoothed"
"""What images are ranked by: it tells captions apart that share no 4-gram with a reference."""

_WORD = re.compile(r"\w+(?:[.,/-]\w+)*")


@dataclass(frozen=True)
class ReportImage:
    """One image's captions and scores.

    Attributes:
        id: As the caller named it.
        caption: The caption that was scored.
        references: What it was scored against.
        scores: By metric; `RANKING` decides the order, ``rouge_l`` where it is absent.
        conflicts: Kinds of clinical proxies in conflict.
        other: The caption it was compared with, or None.
        group: Value of the grouping column, or None.
        logprob: Mean log-probability of the caption's tokens in nats, or None.
    """

    id: str
    caption: str
    references: tuple[str, ...]
    scores: Mapping[str, float]
    conflicts: tuple[str, ...] = ()
    other: str | None = None
    group: str | None = None
    logprob: float | None = None


@dataclass(frozen=True)
class Card:
    """What the page shows of an image: texts as markup in which agreeing words are marked; ``rank`` 1 is the best."""

    image: ReportImage
    rank: int
    picture: str
    caption: Markup
    references: tuple[Markup, ...]
    other: Markup | None


def render_report(
    evaluation: Evaluation,
    images: Sequence[ReportImage],
    *,
    what: str,
    labels: Mapping[str, str],
    headlines: Sequence[str],
    settings: Mapping[str, str],
    provenance: Mapping[str, str] | None = None,
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
        provenance: What it was made with, beside the settings.
        thumbnail: A small PNG or JPEG of an image by its id, asked only for those that are shown.
        compared_with: Name of the other captions.
        shown: Most images to show of each of the worst, the best and random others.
        seed: Draws the random ones.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "tick": _tick, "against_floor": against_floor}
    rows = _rows(evaluation, labels, headlines)
    page = environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        rows=rows,
        in_short=in_short(rows, evaluation),
        compared=compared(rows),
        histograms=_histograms(images, labels),
        sections=_sections(images, thumbnail, shown, seed),
        group_metrics=[name for name in headlines if evaluation.groups and name in evaluation.groups[0].values],
        group_by=settings.get("eval.group_by", ""),
        ranked_from=MIN_RANKED,
        diversity={DIVERSITY.get(name, name): value for name, value in evaluation.diversity.items()},
        labels=labels,
        what=what,
        settings=settings,
        provenance=provenance or {},
        compared_with=compared_with,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in a caption cannot be written


def _rows(evaluation: Evaluation, labels: Mapping[str, str], headlines: Sequence[str]) -> list[Row]:
    return [
        Row(
            name=name,
            label=labels.get(name, name),
            result=result,
            headline=name in headlines,
            proxy=name.removesuffix("_conflict") in evaluation.clinical.kinds,
            detail=detail(name, result, evaluation),
            plot=interval_plot(result),
            change=difference_plot(result),
            verdict=verdict(result),
        )
        for name, result in evaluation.results.items()
    ]


def _histograms(images: Sequence[ReportImage], labels: Mapping[str, str]) -> list[Histogram]:
    scores = {
        labels.get(name, name): [image.scores[name] for image in images if name in image.scores]
        for name in ("cider_d", "rouge_l", RANKING)
    }
    lengths = [float(len(image.caption.split())) for image in images]
    charts = [histogram(label, values) for label, values in scores.items() if values]
    return [*charts, histogram("words in a caption", lengths, whole=True)] if lengths else charts


def _sections(
    images: Sequence[ReportImage], thumbnail: Callable[[str], bytes | None], shown: int, seed: int
) -> list[tuple[str, str, list[Card]]]:
    """Title, explanation and cards of the worst, the best and random others: no image twice, few images all."""
    ranked = sorted(images, key=lambda image: (-image.scores.get(RANKING, image.scores.get("rouge_l", 0.0)), image.id))
    rank = {image.id: place for place, image in enumerate(ranked, start=1)}
    count = min(shown, math.ceil(len(ranked) / 3))
    worst = ranked[::-1][:count]
    best = ranked[: min(count, len(ranked) - count)]
    others = ranked[len(best) : len(ranked) - len(worst)]
    drawn = random.Random(seed).sample(others, min(shown, len(others)))
    return [
        (title, text, [_card(image, rank[image.id], thumbnail(image.id)) for image in chosen])
        for title, text, chosen in (
            ("Worst", "the lowest score first", worst),
            ("Best", "the highest score first", best),
            ("Random", f"drawn from the {len(others)} others" if len(others) > len(drawn) else "all others", drawn),
        )
        if chosen
    ]


def _card(image: ReportImage, rank: int, picture: bytes | None) -> Card:
    said, wanted = _words(image.caption), {word for reference in image.references for word in _words(reference)}
    return Card(
        image=image,
        rank=rank,
        picture="" if picture is None else _data_url(picture),
        caption=_marked(image.caption, wanted),
        references=tuple(_marked(reference, said) for reference in image.references),
        other=None if image.other is None else _marked(image.other, wanted),
    )


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
    text = f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 10_000 else f"{value:.4g}"
    return text.replace("-", "−")


def _signed(value: float | None) -> str:
    return _number(value) if value is None or value <= 0 else f"+{_number(value)}"


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _data_url(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
