"""METEOR and the official tokenizer: official values, and no way to hang or to leave a process behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.java import java_tokens, meteor
from grrcoca_cli.evaluation.tokenize import coco_tokens

GERMAN = (
    "-Duser.language=de -Duser.country=DE -Duser.language.format=de -Duser.country.format=DE -Dfile.encoding=ISO-8859-1"
)


@pytest.fixture
def java() -> None:
    if shutil.which("java") is None:
        pytest.skip("java is not here")


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A ``java`` on the PATH that is a shell script."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def comes_true(condition: object, seconds: float = 10.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not (found := bool(condition())) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def is_gone(pid_file: Path) -> bool:
    """Whether the process whose id a script wrote has ended; a zombie that nobody waits for has, too."""
    pid = int(pid_file.read_text())
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] in ("", "Z")


@pytest.mark.java
@pytest.mark.usefixtures("java")
def test_meteor_of_the_official_example_where_numbers_have_commas(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", GERMAN)
    example = shared_data / "caption-eval/coco_fakecap"
    references: dict[int, list[list[str]]] = {}
    for row in json.loads((example / "captions_val2014_1000.json").read_text())["annotations"]:
        references.setdefault(row["image_id"], []).append(coco_tokens(row["caption"]))
    candidates = {
        row["image_id"]: coco_tokens(row["caption"])
        for row in json.loads((example / "captions_val2014_fakecap_results.json").read_text())
    }
    corpus, per_image = meteor(list(candidates.values()), [references[image] for image in candidates])
    assert corpus == 0.19525467177780284
    assert len(per_image) == 1000
    assert 0 <= min(per_image) < corpus < max(per_image) <= 1


@pytest.mark.java
@pytest.mark.usefixtures("java")
def test_meteor_of_awkward_captions() -> None:
    candidates = [["a", "cat"], [], ["é", "±"], ["a", "|||", "b"], ["\ud800"], ["SCORE"]]
    references = [[["a", "cat"]], [["a", "cat"]], [["é", "±"], ["x"]], [["a", "b"]], [["a"]], [["no"], ["EVAL"]]]
    corpus, per_image = meteor(candidates, references)
    assert per_image == [1, 0, 1, 1, 0, 0]
    assert 0 < corpus < 1


@pytest.mark.java
@pytest.mark.usefixtures("java")
def test_java_tokens_are_of_each_caption_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", GERMAN)
    captions = ["", "A cat.", "x\u2028y\rz\r\nw\x0bv", " \t ", "...", "CAFÉ \U0001f600 10 mm\ud800"]
    assert java_tokens(captions) == [[], ["a", "cat"], ["x", "y", "z", "w", "v"], [], [], ["café", "10", "mm"]]
    # Read as one text, a number behind "fig." makes it an abbreviation, and "The" behind "A." ends a sentence.
    neighbours = ["in fig.", "3 mm", "grade A.", "The mass", "grade A."]
    words = [["in", "fig"], ["3", "mm"], ["grade", "a."], ["the", "mass"], ["grade", "a."]]
    assert java_tokens(neighbours) == words
    assert java_tokens([]) == []


def test_without_java_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for call in (lambda: java_tokens(["a"]), lambda: meteor([["a"]], [[["a"]]])):
        with pytest.raises(UsageError, match=r"no java is on the PATH: install one .* or leave eval\.meteor") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_pycocoevalcap_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grrcoca_cli.evaluation.java.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install"):
        java_tokens(["a"])


def test_no_captions_have_no_meteor() -> None:
    with pytest.raises(UsageError, match="no captions"):
        meteor([], [])


def test_an_exception_is_shown_by_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = (
        r'printf "Picked up JAVA_TOOL_OPTIONS: x\nException in thread main: of 2,0\n\tat a.B\n\tat c.D\n" >&2; exit 1'
    )
    fake_java(tmp_path, monkeypatch, trace)
    expected = "Java ended with 1 after 0 of 2 lines; it said: Exception in thread main: of 2,0; "
    with pytest.raises(UsageError, match=re.escape(expected)):
        java_tokens(["a"])


def test_a_java_that_cannot_start_says_why_on_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(
        tmp_path, monkeypatch, 'printf "Error occurred during initialization of VM\\nNo space for heap\\n"; exit 1'
    )
    with pytest.raises(UsageError, match="it said: Error occurred during initialization of VM / No space for heap"):
        java_tokens(["a"])


def test_lines_that_do_not_come_are_an_error_without_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, monkeypatch, "echo one")
    with pytest.raises(UsageError, match=r"ended with 0 after 1 of 4 lines; eval"):
        java_tokens(["a", "b"])


def test_a_hang_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    fake_java(tmp_path, monkeypatch, f"sleep 60 & echo $! > {child}; wait")
    before = time.monotonic()
    with pytest.raises(UsageError, match=r"did not finish within 1 s and was stopped"):
        java_tokens(["a"], timeout=1)
    assert time.monotonic() - before < 30
    assert comes_true(lambda: is_gone(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_us_ends_java_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    child = tmp_path / "child"
    fake_java(tmp_path, monkeypatch, f"sleep 60 & echo $! > {child}; wait")
    code = "from grrcoca_cli.evaluation.java import java_tokens; java_tokens(['a'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert comes_true(lambda: child.exists() and child.read_text().strip(), 60)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
    assert comes_true(lambda: is_gone(child))


def test_handlers_come_back_and_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, monkeypatch, 'printf "a b .\\n\\n"')
    heard: list[int] = []
    former = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        own = signal.getsignal(signal.SIGHUP)
        assert java_tokens(["a b."]) == [["a", "b"]]
        assert signal.getsignal(signal.SIGHUP) is own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_thread_may_ask_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, monkeypatch, 'printf "a\\n\\n"')
    found: list[list[list[str]]] = []
    thread = threading.Thread(target=lambda: found.append(java_tokens(["a"])))
    thread.start()
    thread.join(30)
    assert found == [[["a"]]]
