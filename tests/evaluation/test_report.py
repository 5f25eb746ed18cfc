"""The HTML report: whole, escaped, loading nothing; in a browser without an error and no wider than a phone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from grrcoca_cli.evaluation.judge import Settings, judge
from grrcoca_cli.evaluation.report import RANKING, ReportImage, render_report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
EVIL = '<script>alert("x")</script> & "quoted"'
VOID = {"meta", "link", "img", "br", "input", "line", "rect"}


def make_report(count: int = 150, *, caption: str = "a left mass on CT", compare: bool = True) -> str:
    predictions = {f"{number:04d}": f"{caption} {number % 7}" for number in range(count)}
    references = {image: [f"a {('left', 'right')[int(image) % 2]} mass number {image}", EVIL] for image in predictions}
    evaluation = judge(
        predictions,
        references,
        Settings(group_by="kind"),
        columns={image: {"kind": "xy"[int(image) % 40 == 0]} for image in predictions},
        other={image: f"{text} of the lung" for image, text in predictions.items()} if compare else None,
    )
    images = [
        ReportImage(
            image,
            predictions[image],
            tuple(references[image]),
            {RANKING: int(image) / count, "rouge_l": 0.5},
            ("side",),
        )
        for image in evaluation.ids
    ]
    return render_report(
        evaluation,
        images,
        what="these captions",
        labels={"bleu4": "BLEU-4"},
        headlines=["bleu4", "cider_d"],
        settings={"eval.seed": "0"},
        thumbnail=lambda image: PIXEL if int(image) % 2 else None,
        compared_with="others.json" if compare else None,
    )


class Checker(HTMLParser):
    """Follows the nesting of elements; collects attribute values and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.values: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.values += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    page = make_report()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(value.startswith("data:") for value in checker.values)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page
    assert page.count("data:image/png;base64,") == page.count("<img") > 5


def test_what_is_said_is_there_and_escaped() -> None:
    page = make_report()
    checker = Checker()
    checker.feed(page)
    text = " ".join(" ".join(checker.text).split())
    assert "<script>alert" not in page
    for words in (
        "not for clinical use",
        "Against others.json",
        "BLEU-4",
        "too small to rank",
        "no clinical judgem",
    ):
        assert words in text
    assert "bleu:coco,closest,unsmoothed" in text
    assert "<mark>mass</mark>" in page
    assert text.count("side conflict") >= 36


def test_a_caption_that_is_markup_stays_text() -> None:
    page = make_report(3, caption=EVIL)
    assert page.count("<script>") == 1
    assert "&lt;" in page


def test_a_metric_without_a_value_is_a_dash() -> None:
    page = make_report(1, compare=False)
    assert "–" in page
    assert "cider_d is not defined" in page
    assert "Against" not in page


def test_only_shown_images_are_in_the_page() -> None:
    assert len(make_report(1500, compare=False)) < 1.5 * len(make_report(150, compare=False))


@pytest.mark.browser
def test_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not here")
    probe = """<script>
      addEventListener("error", event => { document.title = "error: " + event.message; });
      addEventListener("load", () => {
        const field = document.getElementById("filter");
        field.value = "0001";
        field.dispatchEvent(new Event("input"));
        const left = [...document.querySelectorAll(".card")].filter(card => card.offsetParent !== null).length;
        document.body.dataset.probe = JSON.stringify({ wide: document.documentElement.scrollWidth, left });
      });
    </script>"""
    page = tmp_path / "report.html"
    page.write_text(make_report().replace("<head>", "<head>" + probe, 1), encoding="utf-8")
    log = tmp_path / "net.json"
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=390,900"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--disable-background-networking"),
        *("--disable-component-update", "--disable-default-apps", "--no-first-run", "--enable-logging=stderr"),
        *("--virtual-time-budget=2000", "--dump-dom"),
    ]
    done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert "<title>grrcoca evaluation</title>" in done.stdout
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found is not None
    probe_says = json.loads(found.group(1).replace("&quot;", '"'))
    assert probe_says["wide"] <= 500  # headless windows are at least that wide
    assert 1 <= probe_says["left"] <= 3
    asked = set(re.findall(r'"url":"([^"]*)"', log.read_text(encoding="utf-8")))
    own = re.compile(r"https?://[\w.]*(?:google(?:apis)?\.com|gvt1\.com)/")  # the browser asks for its own updates
    assert [url for url in asked if not own.match(url)] == []
