"""The HTML report: whole, escaped, loading nothing; what it says of chance, of a comparison, of missing numbers."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grrcoca_cli.evaluation.judge import Evaluation, Result, Settings, judge
from grrcoca_cli.evaluation.report import RANKING, ReportImage, render_report
from grrcoca_cli.evaluation.report_plots import difference_plot, histogram, interval_plot
from grrcoca_cli.evaluation.report_text import APART, EQUAL, OURS, THEIRS, UNCLEAR, verdict
from grrcoca_cli.evaluation.statistics import Difference, Interval

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
EVIL = '<script>alert("x")</script> & "quoted"'
VOID = {"meta", "link", "img", "br", "input", "line", "rect", "circle"}


@cache
def evaluated(count: int, caption: str, other: str | None) -> tuple[Evaluation, tuple[ReportImage, ...]]:
    predictions = {f"{number:04d}": f"{caption} {number % 7}" for number in range(count)}
    references = {image: [f"a {('left', 'right')[int(image) % 2]} mass number {image}", EVIL] for image in predictions}
    evaluation = judge(
        predictions,
        references,
        Settings(group_by="kind"),
        columns={image: {"kind": "xy"[int(image) % 40 == 0]} for image in predictions},
        other=None if other is None else {image: text + other for image, text in predictions.items()},
    )
    images = tuple(
        ReportImage(
            image,
            predictions[image],
            tuple(references[image]),
            {RANKING: int(image) / count, "rouge_l": 0.5},
            ("side",),
            other=None if other is None else predictions[image] + other,
            group="x",
            logprob=-1.25,
        )
        for image in evaluation.ids
    )
    return evaluation, images


def make_report(
    count: int = 150, *, caption: str = "a left mass on CT", other: str | None = " of the lung", shown: int = 12
) -> str:
    evaluation, images = evaluated(count, caption, other)
    return render_report(
        evaluation,
        images,
        what="these captions",
        labels={"bleu4": "BLEU-4", "cider_d": "CIDEr-D"},
        headlines=["bleu4", "cider_d"],
        settings={"eval.seed": "0", "eval.group_by": "kind"},
        thumbnail=lambda image: PIXEL if int(image) % 2 else None,
        compared_with=None if other is None else "others.json",
        shown=shown,
    )


class Checker(HTMLParser):
    """Follows the nesting of elements; collects elements with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    page = make_report()
    checker = Checker(page)
    assert checker.open == []
    sources = [attributes["src"] for _, attributes in checker.elements if "src" in attributes]
    links = [attributes["href"] for _, attributes in checker.elements if "href" in attributes]
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert all(value.startswith(("#", "data:,")) for value in links)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page
    shown = re.findall(r"<h4>(\d+)</h4>", page)
    assert len(shown) == 36
    assert len(sources) == sum(int(image) % 2 for image in shown)  # every second image has a picture


def test_the_page_is_accessible() -> None:
    checker = Checker(make_report())
    ids = [attributes["id"] for _, attributes in checker.elements if "id" in attributes]
    assert Counter(ids).most_common(1)[0][1] == 1
    targets = {attributes["href"].removeprefix("#") for attributes in checker.all("a")}
    targets |= {attributes["aria-labelledby"] for attributes in checker.all("section")}
    assert len(targets) > 12
    assert targets <= set(ids)
    assert all(attributes["alt"] for attributes in checker.all("img"))
    assert all("aria-label" in attributes or "aria-hidden" in attributes for attributes in checker.all("svg"))
    assert len(checker.all("caption")) == len(checker.all("table")) == 4
    boxes = [attributes for attributes in checker.all("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == 4
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_colours_have_contrast() -> None:
    """At least 4.5 to 1 for every text, in light, in dark and on paper (WCAG 2.2, 1.4.3)."""

    def luminance(colour: str) -> float:
        colour = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    themes = [dict(re.findall(r"--(\w+): #(\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", make_report())]
    assert len(themes) == 3
    for theme in themes:
        pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("page", "panel")]
        for text, ground in [*pairs, ("ink", "tint")]:
            light, dark = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_what_is_said_is_there_and_escaped() -> None:
    page = make_report()
    text = Checker(page).text
    assert "<script>alert" not in page
    evaluation, _ = evaluated(150, "a left mass on CT", " of the lung")
    bleu4 = evaluation.results["bleu4"]
    assert bleu4.value is not None
    assert bleu4.floor is not None
    assert bleu4.interval is not None
    for words in (
        "not for clinical use",
        "Against others.json",
        f"{bleu4.value:.4f}",
        f"{bleu4.interval.low:.4f} to {bleu4.interval.high:.4f}",
        f"random caption {bleu4.floor:.4f}",
        "Groups by kind",
        "y 4",
        "too small to rank",
        "no clinical judgement",
        "side 75 of 150",
        "log-probability -1.250",
        "rank 150 of 150",
        evaluation.signature,
    ):
        assert words in text, words
    assert "<mark>mass</mark>" in page
    assert "<mark>right</mark>" not in page  # no caption says it
    assert text.count("side conflict") >= 36


def test_captions_that_are_markup_or_empty_or_broken_stay_text() -> None:
    page = make_report(3, caption=EVIL)
    assert page.count("<script>") == 1
    assert "&lt;<mark>script</mark>&gt;" in page
    evaluation, (image, *_) = evaluated(3, "a", None)
    odd = [
        ReportImage("blank", " ", image.references, {}),
        ReportImage('<b id="x">', "half \ud800 a pair", ("A Half.",), {}, other=""),
    ]
    page = render_report(evaluation, odd, what="<i>", labels={}, headlines=[], settings={}, compared_with="<u>")
    assert Checker(page).open == []
    page.encode()
    assert page.count(">empty<") == 2
    assert "<mark>half</mark> ? <mark>a</mark> pair" in page
    assert not re.search(r"<[biu][ >]", page.replace("<b>", "", page.count("<figcaption><b>")))


def test_a_metric_without_a_value_is_a_dash_with_its_reason() -> None:
    text = Checker(make_report(1, other=None)).text
    assert re.search(r"CIDEr-D ↑ , higher is better – not defined: it weighs words .* there is one image", text)
    assert "no caption speaks of it where a reference does" not in text
    assert "Against" not in text


def test_arrows_and_sentences() -> None:
    evaluation, images = evaluated(3, "a mass", None)
    results = {
        "ece": Result(0.1, higher_is_better=False),
        "caption_loss": Result(2.0, higher_is_better=False),
        "bleu1": Result(0.5),
    }
    floored = {"bleu2": Result(0.2, Interval(0.1, 0.3), floor=0.15), "bleu3": Result(0.2, Interval(0.1, 0.3), 0.05)}
    changed = replace(evaluation, results=results | floored)
    page = render_report(changed, images, what="x", labels={}, headlines=["bleu2", "bleu3"], settings={})
    text = Checker(page).text
    for words in ("ece ↓ , lower", "caption_loss ↓ , lower", "bleu1 ↑ , higher", "No caption is said twice."):
        assert words in text
    assert "Not clearly better than random captions of the same references: bleu2." in text
    assert text.count(", inside the interval") == 1
    assert "worse than a random caption" not in text


@pytest.mark.parametrize("higher", [True, False])
def test_an_interval_beyond_chance_is_called_worse(higher: bool) -> None:
    evaluation, images = evaluated(3, "a mass", None)
    floor = 0.4 if higher else 0.05
    results = {
        "bleu2": Result(0.2, Interval(0.1, 0.3), floor=floor, higher_is_better=higher),
        "bleu3": Result(0.2, Interval(0.1, 0.3), floor=0.45 - floor, higher_is_better=higher),
    }
    page = render_report(
        replace(evaluation, results=results), images, what="x", labels={}, headlines=["bleu2", "bleu3"], settings={}
    )
    text = Checker(page).text
    assert "Worse than a random caption of the same references: bleu2." in text
    assert "Not clearly better" not in text
    assert text.count(": worse than a random caption") == 1
    assert "inside the interval" not in text


def test_a_page_without_images_or_groups() -> None:
    evaluation, _ = evaluated(3, "a mass", None)
    page = render_report(evaluation, [], what="x", labels={}, headlines=["bleu1"], settings={})
    assert Checker(page).open == []
    assert "<article" not in page
    assert "Better than" in page or "Worse than" in page or "Not clearly better" in page


@pytest.mark.parametrize(
    ("count", "cards"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (20, (7, 7, 6)), (36, (12, 12, 12)), (150, (12, 12, 12))]
)
def test_worst_best_and_random_images_are_different_ones(count: int, cards: tuple[int, int, int]) -> None:
    page = make_report(count, other=None)
    shown = re.findall(r"<h4>(\d+)</h4>", page)
    assert len(set(shown)) == len(shown) == sum(cards)
    worst, best = shown[: cards[0]], shown[cards[0] : cards[0] + cards[1]]
    assert worst == [f"{number:04d}" for number in range(cards[0])]
    assert best == [f"{count - 1 - number:04d}" for number in range(cards[1])]


def test_the_random_images_follow_the_seed_and_a_big_set_stays_small() -> None:
    evaluation, images = evaluated(150, "a left mass on CT", None)
    many = [ReportImage(f"{n:05d}", f"caption {n}", ("a caption",), {RANKING: n / 8000}) for n in range(8000)]
    asked: list[str] = []

    def thumbnail(image: str) -> bytes:
        asked.append(image)
        return PIXEL

    def page(seed: int, of: list[ReportImage]) -> str:
        return render_report(
            evaluation, of, what="x", labels={}, headlines=[], settings={}, thumbnail=thumbnail, seed=seed
        )

    first = page(0, many)
    assert len(asked) == len(set(asked)) == 36
    assert first == page(0, many[::-1])
    assert first != page(1, many)
    assert len(first) < 1.5 * len(page(0, list(images)))


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "higher", "says"),
    [
        (0.1, 0.05, 0.15, 0.001, True, OURS),
        (0.1, 0.05, 0.15, 0.001, False, THEIRS),
        (-0.1, -0.15, -0.05, 0.001, True, THEIRS),
        (0.1, -0.05, 0.25, 0.2, True, APART),
        (0.1, 0.01, 0.25, 0.06, True, UNCLEAR),
        (0.1, -0.01, 0.25, 0.04, True, UNCLEAR),
        (0.1, None, None, 0.04, True, OURS),
        (0.1, None, None, 0.4, True, APART),
        (0.0, 0.0, 0.0, 1.0, True, EQUAL),
    ],
)
def test_what_a_comparison_says(
    value: float, low: float | None, high: float | None, p: float, higher: bool, says: str
) -> None:
    interval = None if low is None or high is None else Interval(low, high)
    result = Result(0.5, difference=Difference(value, interval, p), higher_is_better=higher)
    assert verdict(result) == says
    plot = difference_plot(result)
    assert (plot is None) == (low is None)
    if plot is not None and says in (OURS, THEIRS):
        assert (plot.value > 50) == (says == OURS)


def test_a_set_compared_with_itself_is_the_same() -> None:
    text = Checker(make_report(150, other="")).text
    assert "better in 0 of" in text
    assert "Exactly the same:" in text
    for words in ("Ours is better", "Theirs is better", "not told apart"):
        assert words not in text


finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))


@given(st.lists(finite, min_size=4, max_size=4))
def test_marks_stand_on_their_axis(values: list[float]) -> None:
    low, value, high, floor = *sorted(values[:3]), values[3]
    plot = interval_plot(Result(value, Interval(low, high), floor))
    assert plot is not None
    for mark, at in ((value, plot.value), (low, plot.low), (high, plot.high), (floor, plot.floor)):
        if at is None:
            assert low == high
        else:
            assert -1e-6 <= at <= 100 + 1e-6
            assert plot.start + at / 100 * (plot.end - plot.start) == pytest.approx(mark, rel=1e-6, abs=1e-6)


def test_axes_are_round_and_begin_at_zero_where_they_can() -> None:
    bleu = interval_plot(Result(0.57, Interval(0.51, 0.62), 0.17))
    loss = interval_plot(Result(2.31, Interval(2.29, 2.34)))
    assert bleu is not None
    assert loss is not None
    assert (bleu.start, bleu.end) == (0, 0.8)
    assert 2.2 < loss.start <= 2.29
    assert 2.34 <= loss.end < 2.45
    assert interval_plot(Result(0.5)) is interval_plot(Result(None, Interval(0, 1), 0.5)) is None
    assert interval_plot(Result(0.0, Interval(0.0, 0.0))) is None  # nothing to see of how sure it is


@given(st.lists(st.integers(0, 400), min_size=1, max_size=50))
def test_every_value_is_in_one_bar(values: list[int]) -> None:
    for chart in (histogram("words", values, whole=True), histogram("score", [value / 40 for value in values])):
        assert sum(bar.count for bar in chart.bars) == len(values)
        assert len(chart.bars) <= 24
        assert max(bar.height for bar in chart.bars) == 100
        assert 0 <= chart.median_at <= 100
    words = histogram("words", values, whole=True)
    for bar in words.bars:
        assert bar.count == sum(bar.low <= value <= bar.high for value in values)
