"""Where results go: a folder in place of a file, a full disk, and formats by suffix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grrcoca_cli.cli import app


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def scan(phantom_studies: Path) -> Path:
    return sorted((phantom_studies / "test").glob("*.dcm"))[0]


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    rows = "file,caption\na.png,a dog runs\nb.png,two cars\n"
    for name in ("predictions.csv", "references.csv"):
        (tmp_path / name).write_text(rows)
    predictions, references = tmp_path / "predictions.csv", tmp_path / "references.csv"
    return ["eval", "--predictions", str(predictions), "--references", str(references)]


@pytest.mark.parametrize("out", [".", "/", "", "folder.csv"])
def test_a_folder_where_a_file_is_written_is_one_line(
    out: str, tiny_run: Path, scan: Path, pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    commands = [
        ["caption", scan, "--checkpoint", tiny_run, "--out", out],
        [*pairs, "--report", out],
        [*pairs, "--set", f"eval.save_idf={out or '.'}"],
    ]
    for words in commands:
        code, _, err = run(*words)
        assert code == 2, words
        assert "is a folder: give the name of a file" in err.splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("words", [["ls", "--json"], ["ls", "models"], ["--version"]])
def test_a_full_standard_output_is_exit_code_5(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "grrcoca_cli", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 5, ended.stderr
    assert ended.stderr == "error: no space left to write standard output: the result is incomplete\n"


def test_an_output_creates_its_folder_and_its_suffix_is_its_format(
    tiny_run: Path, scan: Path, pairs: list[str], tmp_path: Path
) -> None:
    rows, table = tmp_path / "new" / "dir" / "rows.jsonl", tmp_path / "other" / "rows.csv"
    for out in (rows, table):
        assert run("caption", scan, "--checkpoint", tiny_run, "--out", out)[0] == 0
    assert json.loads(rows.read_text())["file"] == str(scan)
    assert table.read_text().startswith("file,frame")
    other = tmp_path / "text.csv"
    code, _, err = run("caption", scan, "--checkpoint", tiny_run, "--out", other, "--format", "text")
    assert code == 0
    assert f"note: {other} is written as text, as --format says" in err
    assert other.read_text().startswith(f"{scan}\t")
    report = tmp_path / "reports" / "r.html"
    assert run(*pairs, "--report", report)[0] == 0
    assert report.is_file()


def test_an_output_below_a_file_is_refused_before_the_work(pairs: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run(*pairs, "--report", tmp_path / "file" / "r.html")
    assert code == 2
    assert "is a file, not a folder" in err
