"""The door: help, listings, what they load, and what a wrong word gets."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.config import ModelConfig
from grrcoca_cli.files import lock_folder
from grrcoca_cli.training.runfolder import write_status

HEAVY = ("torch", "numpy", "monai", "pydicom", "torchvision", "matplotlib", "nltk", "PIL")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["ls", "recipes"], ["ls", "datasets"], ["ls", "models"], ["eval", "--help"], ["info"]],
    ids=" ".join,
)
def test_quick_answers_load_nothing_heavy(words: list[str], tiny_run: Path) -> None:
    words = [*words, str(tiny_run)] if words == ["info"] else words
    code = (
        "import sys\nfrom grrcoca_cli.cli import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout
    assert done.stderr.strip() == "[]"


def test_every_command_has_fewer_than_fifteen_flags() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) >= {"demo", "pretrain", "finetune", "caption", "eval", "ls", "info", "doctor"}
    for name, command in commands.items():
        assert len(command.params) < 15, name
        assert command.help, name


def test_no_arguments_shows_help() -> None:
    code, out, err = run()
    assert code == 2
    assert "pretrain" in out + err


def test_version_names_torch() -> None:
    assert version("torch") in run("--version")[1]


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grrcoca_cli", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("grrcoca ")


def test_listings_as_json() -> None:
    for what in ("recipes", "datasets", "models"):
        code, out, _ = run("ls", what, "--json")
        assert code == 0
        assert all(row["about"] for row in json.loads(out)[what])
    assert run("ls", "wonders")[0] == 2


def test_info_says_what_the_checkpoint_is(tiny_run: Path) -> None:
    code, out, _ = run("info", str(tiny_run), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["steps"] == 4
    assert found["variant"] == "grr-coca"
    assert re.fullmatch("[0-9a-f]{12}", found["weights"])

    from safetensors.torch import load_file

    tensors = load_file(Path(found["checkpoint"]) / "model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_info_names_a_changed_size_and_keys_without_blanks(tiny_run: Path) -> None:
    found = json.loads(run("info", str(tiny_run), "--json")[1])
    assert found["size"] == "custom (from tiny)"
    assert found["variant"] == "grr-coca"
    assert found["config"]["model"]["size"] == "tiny"
    assert found["trained on"] == found["trained_on"]
    assert found["context length"] == found["context_length"] == 40
    assert found["status"]["state"] == "finished"
    assert ModelConfig.model_validate({"size": "tiny"}).size_name == "tiny"
    changed = ModelConfig.model_validate({"size": "tiny", "text_mlp": "gelu"})
    assert (changed.size_name, changed.variant_name) == ("tiny", "custom (from grr-coca)")


def test_info_of_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    write_status(tmp_path, "running", 7)
    with lock_folder(tmp_path):
        code, out, _ = run("info", str(tmp_path))
        assert code == 0
        assert "running at step 7" in out
        assert "has not saved one yet" in out
        assert json.loads(run("info", str(tmp_path), "--json")[1])["status"]["state"] == "running"
    code, out, _ = run("info", str(tmp_path))
    assert code == 0
    assert "killed at step 7; the same command resumes it" in out
    assert json.loads(run("info", str(tmp_path), "--json")[1])["status"]["state"] == "killed"
    code, _, err = run("eval", "--checkpoint", str(tmp_path), "--data", str(tmp_path))
    assert code == 7
    assert "has not saved a checkpoint yet (killed at step 7" in err


def test_a_killed_run_with_a_checkpoint_is_called_killed(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    write_status(tmp_path / "run", "running", 4)
    code, out, _ = run("info", str(tmp_path / "run"))
    assert code == 0
    assert "killed at step 4" in out


def test_doctor_lists_codecs() -> None:
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["transfer_syntaxes"]["JPEG 2000 Image Compression (Lossless Only)"] == ""
    assert found["packages"]["torch"] == version("torch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "--recipe", "dmo"], "did you mean 'demo'"),
        (["pretrain", "--recipe", "demo", "--set", "training.stepps=3"], "did you mean 'steps'"),
        (["pretrain", "--recipe", "demo", "--set", "trainning.steps=3"], "did you mean 'training'"),
        (["pretrain", "--recipe", "demo", "--set", "steps"], "expected section.key=value"),
        (["pretrain", "--recipe", "demo", "--set", "training.steps=many"], "training.steps"),
        (["pretrain", "--recipe", "demo", "--resume", "maybe"], "auto"),
        (["pretrain", "--recipe", "demo", "--data", "nowhere/*.tar"], "nowhere"),
        (["finetune", "--dataset", "roco"], "--checkpoint"),
        (["caption", "no-such-file.dcm"], "does not exist"),
        (["eval"], "--checkpoint"),
        (["eval", "--predictions", "p.json"], "--references"),
        (["info", "nowhere"], "no such folder"),
    ],
)
def test_wrong_words_get_one_line_and_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not any(tmp_path.iterdir())


def test_pretrain_without_arguments_says_how_to_get_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("pretrain")
    assert code == 2
    assert "img2dataset" in err
    assert "cc12m.tsv" in err


@pytest.mark.parametrize(
    "words",
    [["demo"], ["pretrain", "--recipe", "demo"], ["ablate", "--recipe", "mechanisms"]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_place_of_the_folder_is_one_line(words: list[str], below: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "run" if below else tmp_path / "file"
    code, shown, err = run(*words, "--out", str(out))
    assert (code, shown) == (2, "")
    assert err == f"error: {tmp_path / 'file'} is a file, not a folder: choose another --out\n"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    ["a = " + 20_000 * "[" + 20_000 * "]", "a = " + 20_000 * "{b=" + "1" + 20_000 * "}", "a" + 20_000 * ".a" + "=1"],
)
@pytest.mark.parametrize("command", ["pretrain", "ablate"])
def test_deeply_nested_toml_is_one_line(text: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text(text)
    code, _, err = run(command, "--recipe", str(tmp_path / "deep.toml"), "--out", str(tmp_path / "x"))
    assert code == 2
    assert err.startswith("error: ")
    assert len(err) < 500
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_deeply_nested_setting_is_one_line(tmp_path: Path) -> None:
    setting = "data.path=" + 20_000 * "["
    code, _, err = run("pretrain", "--recipe", "demo", "--set", setting, "--out", str(tmp_path / "x"))
    assert code == 2
    assert err == "error: --set data.path is nested too deeply: no setting takes such a value\n"


def test_an_unexpected_error_is_a_traceback_and_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grrcoca_cli.commands.listing.list_things", lambda *_, **__: 1 / 0)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
