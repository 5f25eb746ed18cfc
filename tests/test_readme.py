"""Every `grrcoca` command of the README runs, on small data; the demo runs in miniature."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grrcoca_cli import config
from grrcoca_cli.cli import app
from grrcoca_cli.commands import demo as demo_command
from grrcoca_cli.commands import train as train_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = ("training.steps=1", "training.batch_size=8", "eval.batch_size=8", "data.workers=0", "data.augment=none")
MODEL = (
    *("model.size=tiny", "model.image_size=32", "model.image_layers=1", "model.unimodal_layers=1"),
    *("model.multimodal_layers=1", "model.vocab_size=300", "data.validation_fraction=0.2"),
)
ABLATION = (*TRAINING, *MODEL, "data.phantoms=24", "training.eval_every=0", "training.save_every=0")


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines() if line.startswith("grrcoca ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def roco_of(studies: Path, root: Path) -> None:
    """ROCO's own layout around synthetic pictures."""
    from PIL import Image

    for split, count in (("train", 16), ("validation", 8)):
        folder = root / "data" / split / "radiology"
        (folder / "images").mkdir(parents=True)
        rows = []
        for number, file in enumerate(sorted((studies / "train").glob("*.dcm"))[:count]):
            picture = Image.new("L", (40, 40), number * 9)
            picture.save(folder / "images" / f"ROCO_{number:05d}.jpg")
            rows.append(f"ROCO_{number:05d}\t {file.stem} with a tab\tand μ\n")
        (folder / "captions.txt").write_text("".join(rows), encoding="utf-8")


def test_every_readme_command_runs(
    tiny_run: Path, phantom_shards: Path, phantom_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_shards, tmp_path / "shards")
    shutil.copytree(phantom_studies, tmp_path / "studies")
    shutil.copytree(phantom_studies, tmp_path / "my-hospital")
    shutil.copytree(tiny_run, tmp_path / "runs" / "demo" / "finetune")
    scans = sorted(Path("studies").rglob("*.dcm"))
    shutil.copy(scans[0], "scan.dcm")
    Path("references.json").write_text(json.dumps({str(path): [f"caption of {path.stem}"] for path in scans}))
    others = [{"file": str(path), "caption": f"a caption {number}"} for number, path in enumerate(scans)]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    Path("theirs.csv").write_text("file,caption\n" + "".join(f"{row['file']},{row['caption']}\n" for row in others))
    roco_of(tmp_path / "studies", tmp_path / "ROCO")
    Path("cc12m.tsv").write_text("https://example.org/a.jpg\ta caption\n")

    ran = commands()
    known = {"pretrain", "finetune", "caption", "eval", "ablate", "prepare", "ls", "info", "doctor"}
    assert {words[0] for words in ran} == known
    for words in ran:
        settings = {"pretrain": (*TRAINING, *MODEL), "finetune": TRAINING, "ablate": ABLATION}.get(words[0], ())
        flags = [part for setting in settings for part in ("--set", setting)]
        device = ["--device", "cpu"] if words[0] in ("pretrain", "finetune", "caption", "eval", "ablate") else []
        result = CliRunner().invoke(app, [*words, *flags, *device])
        assert result.exit_code == 0, (words, result.output)


def test_the_demo_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = config.read_recipe

    def small(name: str) -> dict[str, Any]:
        tables = real(name)
        if "phantoms" in tables.get("data", {}):
            tables["data"] |= {"phantoms": 40, "validation_fraction": 0.2}
            tables["training"] |= {"steps": 2, "batch_size": 8, "eval_every": 0}
        return tables

    monkeypatch.setattr(demo_command, "read_recipe", small)
    monkeypatch.setattr(train_command, "read_recipe", small)
    monkeypatch.setattr(demo_command, "HELD_OUT", 8)
    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "blank pictures" in result.stdout
    assert "synthetic" in result.stdout
    for path in re.findall(r"^  (/.*)$", result.stdout, flags=re.MULTILINE):
        assert Path(path).exists(), path
    found = json.loads((out / "results.json").read_text())
    assert found["right"].keys() == found["right_on_blank_pictures"].keys() >= {"modality", "side", "exact"}
    assert found["metrics"]["ppl_token"]["value"] > 1
    again = CliRunner().invoke(app, ["demo", "--out", str(out), "--device", "cpu", "--json"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["caption"] == found["caption"]


def test_readme_keeps_its_promises() -> None:
    assert "Not for clinical use" in README
    for code in ("| 0 |", "| 75 |", "| 7 |"):
        assert code in README
    assert re.search(r"No pretrained\s+weights", README)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
