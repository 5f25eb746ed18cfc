"""Progress: one line that rewrites itself on a terminal of any width, plain lines elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grrcoca_cli.console import Pace, Progress, say
from tests.conftest import TINY, set_flags
from tests.terminal.pseudo import GRRCOCA, WIDTHS, Terminal, run_in_terminal

ROOT = Path(__file__).resolve().parents[2]

WORK = """\
import time
from grrcoca_cli.console import Progress, say
with Progress("training", 4000, "steps", of_each=(64, "images")) as progress:
    for step in range(30):
        progress.show(step + 1, "loss 3.210", "caption 2.100", "contrastive 1.110")
        if step == 15:
            say("step 15: validation caption loss 3.222 (perplexity 12.22), contrastive loss 3.2 among 64 pairs")
        time.sleep(0.02)
say("finished")
"""


def shown(terminal: Terminal) -> list[str]:
    return [line for line in terminal.lines if line]


@pytest.mark.parametrize("width", WIDTHS)
def test_progress_is_one_line_that_fits(width: int) -> None:
    terminal = run_in_terminal([sys.executable, "-c", WORK], width, cwd=ROOT)
    assert terminal.code == 0
    lines = shown(terminal)
    progress = [line for line in lines if "/4000 steps" in line]
    assert len(progress) == 1
    assert lines.index(progress[0]) == len(lines) - 2
    assert lines[-1] == "finished"
    assert "30/4000 steps" in progress[0]
    assert re.search(r"\d+ images/s", progress[0])
    assert re.search(r"\d+[smh]\S* left", progress[0])
    assert terminal.raw.count("\r\x1b[2K") > 3  # it did rewrite itself
    whole = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    notes = {word for line in lines if line not in progress for word in line.split()}
    assert notes <= set(whole.split())


@pytest.mark.parametrize("width", [40, 80])
def test_training_shows_one_line(width: int, phantom_shards: Path, tmp_path: Path) -> None:
    flags = ["--recipe", "demo", "--data", str(phantom_shards), "--out", "run", "--device", "cpu"]
    words = [*GRRCOCA, "pretrain", *flags, *set_flags(*TINY, "training.steps=12", "training.save_every=5")]
    terminal = run_in_terminal(words, width, cwd=tmp_path)
    assert terminal.code == 0, terminal.raw
    progress = [line for line in shown(terminal) if "/12 steps" in line]
    assert len(progress) == 1
    assert "12/12 steps" in progress[0]


def test_control_c_starts_its_message_on_a_fresh_line(phantom_shards: Path, tmp_path: Path) -> None:
    flags = ["--recipe", "demo", "--data", str(phantom_shards), "--out", "run", "--device", "cpu"]
    words = [*GRRCOCA, "pretrain", *flags, *set_flags(*TINY, "training.steps=5000")]
    terminal = run_in_terminal(words, 60, cwd=tmp_path, interrupt=lambda text: "/5000 steps" in text)
    assert terminal.code == 75, terminal.raw
    lines = shown(terminal)
    assert sum("/5000 steps" in line for line in lines) == 1
    assert any(line.startswith("stopped after step") for line in lines)
    assert "^C" not in "".join(lines)


@pytest.mark.parametrize("width", [1, 12, 25, 37, 57, 77, 117])
def test_no_piece_of_the_line_is_cut(width: int) -> None:
    progress = Progress("training", 400_000, "steps", of_each=(64, "images"))
    for done in range(10):
        progress._pace.mark(done, float(done))
    progress._done, progress._details = 9, ("loss 3.210", "caption 2.100")
    line = progress._line(width)
    assert len(line) <= width
    pieces = {"training", "9/400000 steps", "64 images/s", "111h07m left", "loss 3.210", "caption 2.100"}
    if width >= 14:
        assert {piece.strip("━╸╺ ") for piece in line.split("  ")} <= pieces | {""}
        assert "9/400000 steps" in line


def test_off_a_terminal_the_last_state_is_shown_and_nothing_is_rewritten(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("captioning", 4000, "images") as progress:
        for done in range(8, 4001, 8):
            progress.show(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "captioning 8/4000 images"
    assert lines[1].startswith("captioning 4000/4000 images")


def test_work_of_one_state_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("indexing", 1, "shards") as progress:
        progress.show(1)
    with Progress("indexing", 0, "shards"):
        pass
    assert capsys.readouterr().err == "indexing 1/1 shards\n"


def test_a_slow_start_is_not_held_against_the_rest() -> None:
    pace, now = Pace(), 0.0
    for done in range(1, 6):
        now += 50.0 if done <= 2 else 1.0
        pace.mark(done, now)
    assert pace.speed() == pytest.approx(1.0)


def test_the_rate_is_of_the_last_steps() -> None:
    pace, now = Pace(), 0.0
    for done in range(1, 1001):
        now += 1.0 if done <= 500 else 0.1
        pace.mark(done, now)
    assert pace.speed() == pytest.approx(10.0)


def test_nothing_is_wrapped_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1
