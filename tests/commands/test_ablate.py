"""The grid end to end in miniature: what is reported, and that no interruption changes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.commands import ablate_workers, modelside
from grrcoca_cli.commands.ablate_data import SharedData
from grrcoca_cli.commands.ablate_runs import Job, Stage, read_job
from grrcoca_cli.commands.datasets import open_data
from grrcoca_cli.config import DataConfig
from grrcoca_cli.data.shards import open_shards
from grrcoca_cli.errors import StoppedAndSaved
from grrcoca_cli.studies import study_names
from grrcoca_cli.training import loop
from medical.phantoms import draw
from tests.conftest import StopAfter

TOY = """
title = "Toy"
base = "pretrain_phantoms"
seeds = 2
baseline = "baseline-coca"
variants = ["baseline-coca", "grr-coca"]
test = 20
sweep = { "training.learning_rate" = [1e-3, 2e-3] }

[model]
image_size = 32
image_layers = 1
unimodal_layers = 1
multimodal_layers = 1
image_width = 32
text_width = 32
vocab_size = 300
context_length = 40

[data]
phantoms = 50
validation_fraction = 0.2

[training]
batch_size = 8
steps = 6
warmup_steps = 2
eval_every = 3
save_every = 0

[eval]
batch_size = 8
limit = 8

[generation]
max_tokens = 4
"""
PICTURES = ("curves-pretrain.png", "changes-pretrain.png")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads may sum in another order than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "toy.toml"
    path.write_text(TOY)
    return path


def ablate(study: Path, out: Path, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["ablate", "--recipe", str(study), "--out", str(out), "--device", "cpu", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "grid"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code, _, err = ablate(study, out, "--json")
    torch.set_num_threads(threads)
    assert code == 0, err
    return out


def same_report(a: Path, b: Path) -> None:
    """All but the wall times, which no two runs share."""
    first, second = (json.loads((out / "report.json").read_text()) for out in (a, b))
    assert first.pop("times").keys() == second.pop("times").keys()
    assert first == second
    texts = [(out / "report.md").read_text().partition("## Time\n") for out in (a, b)]
    assert texts[0][0] == texts[1][0]
    assert all(text[1] for text in texts)
    for name in PICTURES:
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_the_report_has_each_arm_with_its_seeds(whole: Path) -> None:
    found = json.loads((whole / "report.json").read_text())
    assert found["schema"] == 1
    arms = {arm["variant"]: arm for arm in found["arms"]}
    assert list(arms) == ["baseline-coca", "grr-coca"]
    for arm in arms.values():
        assert [each["seed"] for each in arm["seeds"]] == [0, 1]
        for name in ("contrastive_loss", "ppl_token", "coca_loss", "image_to_text_r1", "cider_d"):
            metric, seeds = arm["metrics"][name], [each["metrics"][name] for each in arm["seeds"]]
            assert metric["value"] == pytest.approx(sum(seeds) / 2)
            assert metric["interval"][0] <= metric["value"] <= metric["interval"][1]
        assert arm["evaluation"] == {
            **{"split": "all", "samples": 20, "batch": 8, "left_out": 4},
            **{"distinct_captions": arm["evaluation"]["distinct_captions"], "unreadable": 0},
        }
    change = arms["grr-coca"]["metrics"]["ppl_token"]["change"]
    pairs = zip(arms["grr-coca"]["seeds"], arms["baseline-coca"]["seeds"], strict=True)
    ratios = [ours["metrics"]["ppl_token"] / theirs["metrics"]["ppl_token"] for ours, theirs in pairs]
    assert change["percent"] == pytest.approx(100 * (sum(ratios) / 2 - 1))
    assert 0 < change["examples"]["p"] <= 1
    assert arms["baseline-coca"]["metrics"]["ppl_token"]["change"] is None


def test_the_arms_were_treated_alike(whole: Path) -> None:
    one, other = json.loads((whole / "report.json").read_text())["arms"]
    assert [seed["data_order"] for seed in one["seeds"]] == [seed["data_order"] for seed in other["seeds"]]
    assert one["seeds"][0]["data_order"]["hash"] != one["seeds"][1]["data_order"]["hash"]
    for name in ("steps", "batch_size", "evaluation", "early_stopping", "weights", "tried"):
        assert one[name] == other[name]
    assert one["tried"] == 2
    assert one["equal_parameters"]
    assert other["equal_parameters"]


def test_the_sweep_chose_by_validation_loss_and_the_runs_took_it(whole: Path) -> None:
    found = json.loads((whole / "report.json").read_text())
    for arm in found["arms"]:
        tried = found["sweep"][arm["variant"]]
        assert [row["training.learning_rate"] for row in tried] == [1e-3, 2e-3]
        (chosen,) = (row for row in tried if row["chosen"])
        assert chosen["validation_loss"] == min(row["validation_loss"] for row in tried)
        assert arm["learning_rate"] == chosen["training.learning_rate"]


def test_the_markdown_shows_its_pictures_and_every_section(whole: Path) -> None:
    text = (whole / "report.md").read_text()
    for section in ("losses", "retrieval", "Sweep", "Fairness", "equal arithmetic", "Time"):
        assert section in text
    for name in PICTURES:
        assert f"({name})" in text
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert str(whole) not in text


def test_a_finished_grid_is_only_reported_again(study: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grrcoca_cli.commands.train.pretrain", lambda *_: pytest.fail("it trains"))
    before = (whole / "report.md").read_bytes(), (whole / "report.json").read_bytes()
    code, out, _ = ablate(study, whole, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(before[1])
    assert ((whole / "report.md").read_bytes(), (whole / "report.json").read_bytes()) == before


def test_no_interruption_changes_the_report(
    study: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid"
    with monkeypatch.context() as patch:  # in the middle of the first training
        patch.setattr(loop, "StopRequest", lambda: StopAfter(5))
        code, printed, err = ablate(study, out)
        assert (code, printed) == (75, "")
        assert "same command" in err
    with monkeypatch.context() as patch:  # between two runs
        patch.setattr(ablate_workers, "StopRequest", lambda: StopAfter(2))
        assert ablate(study, out)[0] == 75
    with monkeypatch.context() as patch:  # dead between training and measuring
        patch.setattr(modelside, "run_model", killed)
        assert ablate(study, out)[0] == 130
    with monkeypatch.context() as patch:  # dead with the examples written and their end mark not
        patch.setattr("grrcoca_cli.training.costs.step_flops", killed)
        assert ablate(study, out)[0] == 130
    assert not (out / "report.md").exists()
    assert ablate(study, out)[0] == 0
    same_report(whole, out)


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_other_settings_are_refused_in_the_same_folder(study: Path, whole: Path) -> None:
    code, _, err = ablate(study, whole, "--set", "training.weight_decay=0.3")
    assert code == 2
    assert "training.weight_decay" in err


SCREENED = """
[[arm]]
name = "still"
set = ["training.learning_rate=1e-9"]

[[arm]]
name = "quick"
set = ["training.learning_rate=3e-3"]

[[arm]]
name = "wide"
set = ["training.learning_rate=3e-3", "model.geglu=wide"]

[[arm]]
name = "wild"
set = ["training.learning_rate=1e30", "training.clip=0"]

[finetune]
recipe = "demo_finetune"
set = [
  "data.phantoms=40", "data.validation_fraction=0.2", "training.steps=1", "training.batch_size=8",
  "training.eval_every=1", "eval.limit=8",
]
"""


def test_screening_confirms_on_fresh_seeds_and_keeps_what_failed(tmp_path: Path) -> None:
    path, out = tmp_path / "screened.toml", tmp_path / "grid"
    common = TOY.replace("seeds = 2", 'seeds = 1\nconfirm_seeds = 1\ncombined = "plus"').replace("sweep =", "# ")
    common = common.replace("variants =", "# ").replace("baseline-coca", "still").replace("steps = 6", "steps = 2")
    path.write_text(common + SCREENED)
    code, _, err = ablate(path, out)
    assert code == 0, err
    found = json.loads((out / "report.json").read_text())
    arms = {arm["variant"]: arm for arm in found["arms"]}
    assert found["screening"]["passed"] == ["quick", "wide"]
    assert found["screening"]["dropped"] == ["wild"]
    assert "nothing was updated" in arms["wild"]["failed"][0]["reason"]
    assert arms["wild"]["metrics"] == {}
    assert {name: [seed["seed"] for seed in arm["seeds"]] for name, arm in arms.items()} == {
        **{name: [1] for name in ("still", "quick", "wide", "plus")},  # seed 0 was the screening's
        "wild": [],
    }
    assert arms["plus"]["settings"] == ["training.learning_rate=3e-3", "model.geglu=wide"]
    assert found["stage"] == "finetune"
    assert found["earlier_stages"]["pretrain"]["arms"][0]["metrics"].keys() == arms["still"]["metrics"].keys()
    assert {arm["evaluation"]["batch"] for arm in found["arms"] if arm["evaluation"]} == {8}
    assert "| wild |" in (out / "report.md").read_text()


def test_a_dry_run_says_what_would_be_run(study: Path, whole: Path, tmp_path: Path) -> None:
    code, out, _ = ablate(study, tmp_path / "grid", "--dry-run", "--seeds", "5", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["sweep"], found["runs"]) == (4, 10)
    assert [arm["variant"] for arm in found["arms"]] == ["baseline-coca", "grr-coca"]
    assert not (tmp_path / "grid").exists()
    real = json.loads((whole / "report.json").read_text())["arms"]
    assert {arm["variant"]: arm["parameters"] for arm in found["arms"]} == {
        arm["variant"]: arm["parameters"] for arm in real
    }
    # 14 runs of 6 steps, of which those of the second arm are a little cheaper or dearer
    assert found["seconds_to_end"] == pytest.approx(14 * 6 * found["seconds_per_step"], rel=0.3)


def test_a_dry_run_prints_lines_for_people(study: Path, whole: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(whole, tmp_path / "grid")
    before = sorted(kept.rglob("*"))
    code, out, err = ablate(study, kept, "--dry-run")
    assert code == 0, err
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *("baseline-coca", "grr-coca", "4 sweep, 4 runs, 0 confirmation at most", "time")
    ]
    assert "training the tokenizer" not in err  # that of the earlier start is taken
    assert sorted(kept.rglob("*")) == before


def test_changed_settings_get_advice_that_this_command_has(study: Path, whole: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(whole, tmp_path / "grid")
    code, _, err = ablate(study, kept, "--set", "training.weight_decay=0.3")
    assert code == 2
    assert "training.weight_decay: 0.05 there, 0.3 now" in err
    assert "choose another --out" in err
    assert "--resume" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "mechanism"], "did you mean 'mechanisms'"),
        (["--variants", "grr-cocoa"], "did you mean 'grr-coca'"),
        (["--seeds", "0"], "--seeds 0"),
        (["--set", "training.seed=4"], "--seeds N"),
        (["--set", "training.stepps=4"], "did you mean 'steps'"),
        (["--recipe", "vqa"], "--data PATH"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_words_get_one_line_and_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["ablate", "--out", "grid", *words])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_studies_are_listed() -> None:
    listed = json.loads(CliRunner().invoke(app, ["ls", "studies", "--json"]).stdout)["studies"]
    assert {row["name"] for row in listed} == set(study_names())
    assert all(row["about"] for row in listed)


def jobs(tmp_path: Path) -> list[Job]:
    return [Job("arm", seed, tmp_path / "arm" / f"seed-{seed}", (Stage("pretrain", {}, None),)) for seed in range(3)]


def fake_worker(command: str) -> Callable[[Job, str], "subprocess.Popen[bytes]"]:
    def start(job: Job, device: str) -> "subprocess.Popen[bytes]":
        folder = read_job(job.write()).folder
        (folder / "log.txt").write_text("said last\n")
        (folder / "device").write_text(device)
        return subprocess.Popen(["sh", "-c", command.replace("FOLDER", str(folder))])

    return start


def test_runs_side_by_side_share_out_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_workers, "_start", fake_worker("sleep 0.5"))
    ablate_workers.run_jobs(jobs(tmp_path)[:2], 2, ["cuda:0", "cuda:1"])
    devices = [(job.folder / "device").read_text() for job in jobs(tmp_path)[:2]]
    assert devices == ["cuda:0", "cuda:1"]


def test_a_failed_worker_ends_the_study_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_workers, "_start", fake_worker("case FOLDER in *0) exit 5;; *) exec sleep 60;; esac"))
    with pytest.raises(ablate_workers.WorkerFailed, match="seed-0 ended with exit code 5: said last") as caught:
        ablate_workers.run_jobs(jobs(tmp_path), 2, ["cpu"])
    assert caught.value.exit_code == 5
    assert not jobs(tmp_path)[2].folder.exists()  # nothing new was begun


def test_a_signal_stops_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_workers, "_start", fake_worker("exec sleep 60"))
    monkeypatch.setattr(ablate_workers, "StopRequest", lambda: StopAfter(4))
    with pytest.raises(StoppedAndSaved):
        ablate_workers.run_jobs(jobs(tmp_path), 2, ["cpu"])


@pytest.mark.slow
def test_killed_for_real_in_two_processes(study: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    words = ["ablate", "--recipe", str(study), "--out", str(out), "--device", "cpu", "--jobs", "2"]
    environment: dict[str, Any] = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "grrcoca_cli", *words], env=environment)
        seen = len(list(out.rglob("eval.json")))
        while process.poll() is None and len(list(out.rglob("eval.json"))) <= seen:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(3)  # its workers end by themselves
    done = subprocess.run([sys.executable, "-m", "grrcoca_cli", *words], env=environment, check=False)
    assert done.returncode == 0
    same_report(whole, out)


def test_a_set_is_judged_on_its_test_split_else_on_what_training_validates_on(
    phantom_studies: Path, phantom_shards: Path, tmp_path: Path
) -> None:
    def judged(dataset: str, path: Path, **settings: object) -> tuple[str, list[str]]:
        tables: Any = {"data": {"dataset": dataset, "path": str(path), **settings}}
        found = SharedData(tmp_path, 20).judged(tables, tables, "")
        opened = found.open(DataConfig.model_validate(tables["data"]))
        return found.split, [opened.key(index) for index in range(len(opened))]

    split, keys = judged("folder", phantom_studies)
    assert (split, len(keys)) == ("test", 6)
    for path in (phantom_studies / "train").iterdir():
        shutil.copy(path, tmp_path)
        (tmp_path / f"{path.stem}.txt").write_text("a caption")
    for dataset, path, whole in (("shards", phantom_shards, "train"), ("folder", tmp_path, "all")):
        settings: Any = {"validation_fraction": 0.3, "split": whole}
        opened = open_data(DataConfig(dataset=dataset, path=str(path), **settings), tmp_path)  # type: ignore[arg-type]
        split, keys = judged(dataset, path, **settings)
        assert split == "validation"
        assert keys == [opened.validation.key(index) for index in range(len(opened.validation))]
        assert not set(keys) & {opened.train.key(index) for index in range(len(opened.train))}


def test_phantoms_that_judge_are_in_no_training_set(tmp_path: Path) -> None:
    shared = SharedData(tmp_path, 4)
    small, large = (shared.place({"data": {"dataset": "phantoms", "phantoms": count}}) for count in (3, 5))
    held_out = shared.judged({"data": {"dataset": "phantoms"}}, small, "").path
    captions = [
        [opened.peek(index).captions[0] for index in range(len(opened))]
        for opened in map(open_shards, (held_out, str(small["data"]["path"]), str(large["data"]["path"])))
    ]
    drawn = [draw(0, index, pixels=64).phantom.caption("plain") for index in range(9)]
    assert captions == [drawn[:4], drawn[4:7], drawn[4:9]]
