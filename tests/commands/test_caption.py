"""`grrcoca caption`: every kind of input gives a caption or a reason, and the right exit code."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import grrcoca_cli
from grrcoca_cli import __version__
from grrcoca_cli.cli import app


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["caption", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def mixed(tmp_path: Path, phantom_studies: Path) -> Path:
    """A folder with a DICOM file without extension, a picture, a text file, a cut DICOM file and a hidden one."""
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    dicom = sorted((phantom_studies / "test").glob("*.dcm"))[0]
    shutil.copy(dicom, folder / "deeper" / "IM0001")
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(folder / "picture.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "cut.dcm").write_bytes(dicom.read_bytes()[:-3000])
    (folder / ".hidden").write_text("never looked at")
    return folder


def test_one_dicom_file(tiny_run: Path, phantom_studies: Path) -> None:
    file = sorted((phantom_studies / "test").glob("*.dcm"))[0]
    code, out, err = run(file, "--checkpoint", tiny_run)
    assert code == 0
    assert out.startswith(f"{file}\t")
    assert out.count("\n") == 1
    assert "not a diagnosis" in err


def test_a_folder_gives_what_it_can(tiny_run: Path, mixed: Path) -> None:
    code, out, err = run(mixed, "--checkpoint", tiny_run, "--json")
    rows = {Path(row["file"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 3
    assert set(rows) == {"IM0001", "picture.png", "cut.dcm"}
    assert rows["IM0001"]["caption"]
    assert rows["IM0001"]["logprob"] < 0
    assert rows["cut.dcm"]["error"].startswith("truncated")
    assert "caption" not in rows["cut.dcm"]
    assert "skipped 1 file" in err
    assert "Traceback" not in err


def test_csv_holds_the_same_rows(tiny_run: Path, mixed: Path) -> None:
    _, out, _ = run(mixed, "--checkpoint", tiny_run, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["file"]).name for row in rows] == ["cut.dcm", "picture.png", "IM0001"]
    assert rows[0]["error"]
    assert rows[1]["caption"] or rows[1]["logprob"]


def test_a_named_file_that_is_no_picture_fails(tiny_run: Path, mixed: Path) -> None:
    code, out, err = run(mixed / "notes.txt", "--checkpoint", tiny_run)
    assert (code, out) == (3, "")
    assert "not an image" in err


def test_only_other_files_is_nothing_to_do(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    assert run(tmp_path, "--checkpoint", tiny_run)[0] == 3


def test_an_interrupted_file_goes_on(tiny_run: Path, mixed: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(mixed, "--checkpoint", tiny_run, "--format", "jsonl", "--out", whole)
    state = json.loads(Path(f"{whole}.state").read_text())["provenance"]
    assert len(state["checkpoint"]["weights_sha256"]) == 64
    assert state["version"] == __version__
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:1]) + lines[1][:20])  # killed in the middle of a line
    shutil.copy(f"{whole}.state", f"{cut}.state")
    run(mixed, "--checkpoint", tiny_run, "--format", "jsonl", "--out", cut)
    assert sorted(cut.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    run(mixed, "--checkpoint", tiny_run, "--format", "jsonl", "--out", cut)
    assert len(cut.read_text().splitlines()) == len(lines)


@pytest.mark.parametrize("kind", ["text", "csv"])
def test_going_on_knows_its_own_formats(tiny_run: Path, mixed: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    (mixed / "cut.dcm").unlink()
    run(mixed, "--checkpoint", tiny_run, "--format", kind, "--out", out)
    before = out.read_text()
    run(mixed, "--checkpoint", tiny_run, "--format", kind, "--out", out)
    assert out.read_text() == before


def test_a_foreign_output_file_is_not_touched(tiny_run: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious.txt"
    out.write_text("my notes\nwithout tabs\nand no newline at the end")
    code, _, err = run(mixed, "--checkpoint", tiny_run, "--out", out)
    assert code == 2
    assert "choose another --out" in err
    assert out.read_text().endswith("at the end")


def test_signals(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    """With --out a signal keeps the rows and exits 75; to stdout Ctrl-C exits 130."""
    many = tmp_path / "many"
    many.mkdir()
    source = tmp_path / "source.dcm"
    shutil.copy(sorted((phantom_studies / "test").glob("*.dcm"))[0], source)
    for number in range(4000):  # far more than can be done before the signal
        os.link(source, many / f"{number:04d}.dcm")
    command = [sys.executable, "-m", "grrcoca_cli", "caption", str(many), "--checkpoint", str(tiny_run)]

    out = tmp_path / "rows.txt"
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "run the same command" in err
    kept = out.read_text().splitlines()
    assert 0 < len(kept) < 4000

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_beams_and_samples(tiny_run: Path, mixed: Path) -> None:
    picture = mixed / "picture.png"
    code, out, _ = run(picture, "--checkpoint", tiny_run, "--json", "--beam", 3, "--set", "generation.captions=2")
    assert code == 0
    assert len(json.loads(out)["captions"]) == 2
    code, _, err = run(picture, "--checkpoint", tiny_run, "--set", "generation.captions=2")
    assert code == 2
    assert "several captions" in err
    assert run(picture, "--checkpoint", tiny_run, "--set", "training.steps=3")[0] == 2
    assert run(picture, "--checkpoint", tiny_run, "--format", "xml")[0] == 2


def test_the_default_checkpoint(tiny_run: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRRCOCA_CHECKPOINT", raising=False)
    code, _, err = run(mixed / "picture.png")
    assert code == 2
    assert "grrcoca demo" in err
    monkeypatch.setenv("GRRCOCA_CHECKPOINT", str(tiny_run))
    assert run(mixed / "picture.png")[0] == 0
    monkeypatch.delenv("GRRCOCA_CHECKPOINT")
    shutil.copytree(tiny_run, tmp_path / "runs" / "mine")
    code, _, err = run(mixed / "picture.png")
    assert code == 0
    assert "runs/mine" in err


def test_the_python_door(tiny_run: Path, mixed: Path) -> None:
    captioner = grrcoca_cli.load(tiny_run, device="cpu")
    files = [mixed / "picture.png", mixed / "deeper" / "IM0001"]
    texts = captioner.caption(files, beams=2)
    assert len(texts) == 2
    images, captions = captioner.encode_image(files), captioner.encode_text(["a caption", "another, longer one"])
    assert images.shape == captions.shape == (2, 96)
    assert images.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert captioner.encode_text(["a caption"]).allclose(captions[:1], atol=1e-5)
    _, out, _ = run(files[0], "--checkpoint", tiny_run, "--beam", 2)
    assert out.rstrip("\n").split("\t")[1] == texts[0]


def test_every_real_file_gives_a_caption_or_a_reason(
    tiny_run: Path, shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import pydicom

    pip_files = Path(pydicom.__file__).parent / "data"
    code, out, err = run(pip_files, shared_data / "dicom", "--checkpoint", tiny_run, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert len([row for row in rows if "caption" in row]) >= 110
    assert all(("caption" in row) != ("error" in row) for row in rows)
    assert "Traceback" not in err
    leaked = capfd.readouterr()
    assert (leaked.out, leaked.err) == ("", "")
