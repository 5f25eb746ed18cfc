"""The HTML report in Chromium: no error, no request, no wider than a phone, light and dark, with and without scripts.

The browser is driven over its DevTools pipe: file descriptors 3 and 4, JSON messages that end with a zero byte.
"""

import base64
import csv
import io
import itertools
import json
import os
import random
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grrcoca_cli.evaluation.bleu import smoothed_bleu4
from grrcoca_cli.evaluation.judge import Settings, judge
from grrcoca_cli.evaluation.report import RANKING, ReportImage, render_report
from grrcoca_cli.evaluation.tokenize import coco_tokens

pytestmark = pytest.mark.browser

VQA_RAD = Path(__file__).resolve().parents[3] / "shared/data/vqa-rad-cc0"
EVIL = '<script>alert(1)</script><img src="https://example.org/x.png" onerror="alert(2)">'
HELD = 60  # seconds that an answer may take on a busy machine


class Browser:
    """A headless Chromium with one tab; calls go by their DevTools names and every event is kept."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run "
            "--disable-background-networking --disable-component-update --disable-extensions --remote-debugging-pipe"
        )
        line = f'exec "$0" {flags} "--user-data-dir=$1" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, program, str(profile)],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._session, self._read = itertools.count(1), "", b""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._from], [], [], HELD)[0], "the browser does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._read += piece
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path) -> None:
        self.events.clear()
        self("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def ask(self, expression: str) -> Any:
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def show_as(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def complaints(self) -> list[dict[str, Any]]:
        kinds = (
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        )
        return [event for event in self.events if event["method"] in kinds]

    def requested(self) -> set[str]:
        asked = [event["params"]["request"]["url"] for event in self.events if "request" in event.get("params", {})]
        return {url for url in asked if not url.startswith("data:")}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(HELD)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("chromium is not here")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def real_captions() -> dict[str, str]:
    """Captions of VQA-RAD where that is at hand, made-up ones elsewhere."""
    if not VQA_RAD.is_dir():
        organs = ("chest", "abdomen", "head")
        return {f"made{n:03d}": f"X-ray of the {organs[n % 3]} showing {n % 7} nodules." for n in range(60)}
    tables = [path.read_text(encoding="utf-8").splitlines() for path in sorted(VQA_RAD.glob("*_captions.csv"))]
    return {row["ID"]: row["Caption"] for table in tables for row in csv.DictReader(table)}


def thumbnail(image: str) -> bytes:
    source = VQA_RAD / "images" / f"{image}.jpg"
    picture = Image.open(source).convert("L") if source.exists() else Image.new("L", (320, 240), 90)
    picture.thumbnail((224, 224))
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made-up system that often takes a caption of another image, compared with a worse one."""
    references = {image: [text] for image, text in real_captions().items()}
    every = [text for (text,) in references.values()]

    def system(kept: float, seed: int) -> dict[str, str]:
        draw = random.Random(seed)
        return {key: text if draw.random() < kept else draw.choice(every) for key, (text,) in references.items()}

    ours, theirs = system(0.5, seed=1), system(0.1, seed=2)
    worst = max(references)
    ours[worst] = EVIL
    found = judge(ours, references, Settings(group_by="modality"), other=theirs)
    ranks = smoothed_bleu4(
        [coco_tokens(ours[i]) for i in found.ids], [[coco_tokens(references[i][0])] for i in found.ids]
    )
    images = [
        ReportImage(
            image,
            ours[image],
            tuple(references[image]),
            {RANKING: -1.0 if image == worst else rank, **found.per_image[image]},
            found.clinical.per_image[image],
            theirs[image],
        )
        for image, rank in zip(found.ids, ranks, strict=True)
    ]
    report = render_report(
        found,
        images,
        what="A made-up system on VQA-RAD",
        labels={},
        headlines=("bleu4", "rouge_l", "cider_d", "modality_conflict"),
        settings={"eval.group_by": "modality", "a.long.value": "x" * 300},
        thumbnail=thumbnail,
        compared_with="a_file_with_a_rather_long_name_that_has_no_place_to_break.jsonl",
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 390, 320])
def test_it_shows_without_complaint_and_fits(
    browser: Browser, page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    browser.show_as(width, scheme)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requested() == {page.as_uri()}
    assert browser.ask("document.documentElement.scrollWidth") == browser.ask("innerWidth") == width
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth > 1)")
    assert browser.ask("document.images.length") == browser.ask("document.querySelectorAll('.card').length") == 36
    columns = browser.ask("new Set([...document.querySelectorAll('.card')].map(card => card.offsetLeft)).size")
    assert columns == (2 if width == 1280 else 1)
    shot = tmp_path / f"{width}-{scheme}.png"
    shot.write_bytes(base64.b64decode(browser("Page.captureScreenshot")["data"]))
    grey = np.asarray(Image.open(shot).convert("L"))
    assert grey.shape == (900, width)
    assert np.median(grey) > 200 if scheme == "light" else np.median(grey) < 50
    assert grey.std() > 15  # something is drawn on it


def test_a_hostile_caption_is_shown_as_text(browser: Browser, page: Path) -> None:
    browser.show_as(1280, "light")
    browser.open(page)
    shown = browser.ask("document.querySelector('.card .texts dd').innerText")
    assert shown == EVIL
    assert browser.complaints() == []


def test_the_filter_hides_cards_and_empty_parts(browser: Browser, page: Path) -> None:
    browser.show_as(1280, "light")
    browser.open(page)
    wanted = browser.ask("document.querySelectorAll('.card h4')[13].textContent")
    browser.ask("document.getElementById('filter').focus()")
    browser("Input.insertText", text=f"  {wanted.upper()} ")
    seen = "[...document.querySelectorAll('.card')].filter(card => card.offsetParent)"
    assert browser.ask(f"{seen}.map(card => card.querySelector('h4').textContent)") == [wanted]
    assert browser.ask("[...document.querySelectorAll('.part')].map(part => part.offsetParent !== null)") == [
        False,
        True,
        False,
    ]
    assert browser.ask("document.getElementById('left').textContent") == "1 of 36 cards"
    browser.ask("document.getElementById('copy').click()")
    assert "bleu:coco" in browser.ask("getSelection().toString()")
    assert browser.complaints() == []


def test_everything_is_there_without_scripts_and_on_paper(browser: Browser, page: Path) -> None:
    browser("Emulation.setScriptExecutionDisabled", value=True)
    browser.show_as(1280, "light")
    browser.open(page)
    assert browser.ask("document.querySelectorAll('.card').length") == 36
    assert browser.ask("[...document.querySelectorAll('.card, section')].every(part => part.offsetHeight > 50)")
    assert browser.ask("getComputedStyle(document.querySelector('.filter')).display") == "none"
    assert browser.ask("getComputedStyle(document.getElementById('copy')).display") == "none"
    browser("Emulation.setScriptExecutionDisabled", value=False)
    paper = 673  # A4 less its margins, in CSS pixels
    browser("Emulation.setDeviceMetricsOverride", width=paper, height=950, deviceScaleFactor=1, mobile=False)
    browser("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.ask("document.documentElement.scrollWidth") <= paper + 2
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser("Emulation.setEmulatedMedia", media="")
