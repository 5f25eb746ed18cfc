"""The cluster templates: their options exist, their commands parse, what can go on is queued again, nothing else."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from grrcoca_cli.cli import app
from grrcoca_cli.config import apply_settings, build_recipe, read_recipe

LAUNCH = Path(__file__).resolve().parents[1] / "recipes" / "launch"
TEMPLATES = sorted(path.name for path in LAUNCH.iterdir())
SBATCH_OPTIONS = {
    *("array", "cpus-per-task", "gpus-per-node", "job-name", "mem", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "time"),
}
SRUN_OPTIONS = {"--kill-on-bad-exit=0", "--wait=300"}

# What a step is replaced by: it keeps its words, and does what the test says a run does.
STEP = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$RECORD/$(basename "$0")"
while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
if [ -n "$STATE" ]; then
  sleep 0.05  # a file system's clock ticks in milliseconds
  mkdir -p "$out" && echo "{\\"state\\": \\"$STATE\\", \\"exit_code\\": $EXIT_CODE}" > "$out/status.json"
fi
if [ -n "$WAIT_FOR_SIGNAL" ]; then
  trap 'exit 1' TERM
  echo $$ > "$RECORD/pid"
  for _ in {1..600}; do sleep 0.1; done
fi
exit "$CODE"
"""
SRUN = """#!/usr/bin/env bash
echo "$@" > "$RECORD/srun"
while [[ $1 == --* ]]; do shift; done
"$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$RECORD/scontrol"
[ "$1 $2" = "show hostnames" ] && printf 'node7\\nnode8\\n'
exit 0
"""
SCANCEL = """#!/usr/bin/env bash
echo "$@" > "$RECORD/scancel"
kill -TERM "$(cat "$RECORD/pid")"
"""


@dataclass
class Cluster:
    """A folder of stand-ins for Slurm and torchrun, and what they wrote down."""

    root: Path

    def start(self, template: str, *words: str, **settings: str) -> "subprocess.Popen[str]":
        """Run a template as a batch job's shell would, with the state and exit code that its step is to leave."""
        job = {"SLURM_JOB_ID": "45678", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
        job |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_ARRAY_TASK_ID": "2", "RECORD": str(self.root / "record")}
        job |= {
            "DATA": "data with spaces",
            "CHECKPOINT": "runs/a",
            "PICTURES": "pictures",
            "OUT": str(self.root / "run"),
        }
        step = {"STATE": "", "CODE": "0", "EXIT_CODE": "null", "WAIT_FOR_SIGNAL": ""}
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(LAUNCH / template), *words],
            env={**os.environ, **job, **step, **settings, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, template: str, *words: str, **settings: str) -> int:
        """`start` to the end; gives the exit code."""
        process = self.start(template, *words, **settings)
        process.communicate(timeout=60)
        return process.returncode

    def words(self, name: str) -> list[str]:
        """What a step was called with."""
        return (self.root / "record" / name).read_text().split("\0")[:-1]

    def requeued(self) -> bool:
        record = self.root / "record" / "scontrol"
        return record.exists() and "requeue 45678\n" in record.read_text()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "bin").mkdir()
    (tmp_path / "record").mkdir()
    commands = {"torchrun": STEP, "grrcoca": STEP, "srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return Cluster(tmp_path)


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """A command line of ours, as the app itself reads it."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("grrcoca", ["ls"])
    command = group.get_command(context, words[0])
    return words[0], command.make_context(words[0], words[1:], parent=context).params


def torchrun_words(words: list[str]) -> tuple[Any, list[str]]:
    """torchrun's own options, as it reads them, and the words for grrcoca."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    assert options.module
    assert options.training_script == "grrcoca_cli"
    return options, options.training_script_args


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_sound(template: str) -> None:
    path = LAUNCH / template
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert template in text.split("\n\n")[0]  # the head names the line that starts it
    if path.suffix == ".sbatch":
        head = text.split("\nset ")[0]
        options = re.findall(r"^#SBATCH --([a-z-]+)(=\S+)?$", head, flags=re.MULTILINE)
        assert len(options) == text.count("#SBATCH")
        assert {name for name, _ in options} <= SBATCH_OPTIONS
        assert {"requeue", "signal", "time", "open-mode"} <= {name for name, _ in options}
        assert re.search(r"^#SBATCH --signal=(B:)?TERM@120$", head, flags=re.MULTILINE)
    for option in re.findall(r"srun ((?:--\S+ )*)", text):
        assert set(option.split()) <= SRUN_OPTIONS


def test_pretraining_over_nodes(cluster: Cluster) -> None:
    assert cluster.run("pretrain_ddp.sbatch", "--set", "training.seed=1", STATE="finished") == 0
    options, words = torchrun_words(cluster.words("torchrun"))
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "4", 0)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "node7:25678")
    command, params = parsed(words)
    assert (command, params["data"], params["out"]) == ("pretrain", "data with spaces", cluster.root / "run")
    recipe = build_recipe(apply_settings(read_recipe(params["recipe"]), params["set_"]), "the template")
    assert recipe.training.seed == 1
    assert not cluster.requeued()


@pytest.mark.parametrize(
    ("state", "code", "ends_with", "goes_on"),
    [("stopped", "1", 0, True), ("failed", "1", 1, False), ("running", "137", 137, False), ("", "1", 1, False)],
)
def test_pretraining_is_queued_again_when_it_stopped_and_then_alone(
    cluster: Cluster, state: str, code: str, ends_with: int, goes_on: bool
) -> None:
    assert cluster.run("pretrain_ddp.sbatch", STATE=state, CODE=code) == ends_with
    assert cluster.requeued() == goes_on


def test_an_old_status_queues_nothing(cluster: Cluster) -> None:
    (cluster.root / "run").mkdir()
    (cluster.root / "run" / "status.json").write_text('{"state": "stopped", "exit_code": 75}')
    time.sleep(0.05)
    assert cluster.run("pretrain_ddp.sbatch", CODE="1") == 1  # torchrun did not even start
    assert cluster.run("pretrain_ddp.sbatch", CODE="0") == 1
    assert not cluster.requeued()
    assert cluster.run("torchrun.sh", CODE="1") == 1


def test_one_run_a_seed(cluster: Cluster) -> None:
    assert cluster.run("finetune_array.sbatch", "--set", "training.steps=7") == 0
    command, params = parsed(cluster.words("grrcoca"))
    assert (command, params["dataset"], params["out"]) == ("finetune", "roco", cluster.root / "run" / "seed-2")
    recipe = build_recipe(apply_settings(read_recipe("finetune_roco"), params["set_"]), "the template")
    assert (recipe.training.seed, recipe.training.steps) == (2, 7)
    assert not cluster.requeued()


@pytest.mark.parametrize(("code", "ends_with", "goes_on"), [("75", 0, True), ("6", 6, False), ("2", 2, False)])
def test_a_seed_is_queued_again_when_it_stopped_and_then_alone(
    cluster: Cluster, code: str, ends_with: int, goes_on: bool
) -> None:
    assert cluster.run("finetune_array.sbatch", CODE=code) == ends_with
    assert cluster.requeued() == goes_on


def test_captioning_over_nodes(cluster: Cluster) -> None:
    assert cluster.run("caption_many.sbatch", "--beam", "4") == 0
    options, words = torchrun_words(cluster.words("torchrun"))
    assert (options.nnodes, options.rdzv_endpoint) == ("2", "node7:25678")
    command, params = parsed(words)
    assert (command, params["paths"], params["beam"], params["format_"]) == ("caption", ["pictures"], 4, "jsonl")
    assert not cluster.requeued()
    assert cluster.run("caption_many.sbatch", CODE="3") == 3  # some inputs failed: again would change nothing
    assert not cluster.requeued()


def test_captioning_hands_the_signal_on_and_is_queued_again(cluster: Cluster) -> None:
    process = cluster.start("caption_many.sbatch", WAIT_FOR_SIGNAL="1")
    until = time.monotonic() + 30
    while not (cluster.root / "record" / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (cluster.root / "record" / "scancel").read_text() == "--signal=TERM 45678.0\n"
    assert cluster.requeued()


def test_one_machine_gives_the_exit_code_that_torchrun_hides(cluster: Cluster) -> None:
    assert cluster.run("torchrun.sh", CHECKPOINT="", STATE="stopped", CODE="1", EXIT_CODE="75") == 75
    options, words = torchrun_words(cluster.words("torchrun"))
    assert (options.standalone, options.nproc_per_node) == (True, "gpu")
    command, params = parsed(words)
    assert (command, params["recipe"]) == ("pretrain", "pretrain_cc12m")
    assert cluster.run("torchrun.sh", STATE="finished", EXIT_CODE="0", RECIPE="finetune_roco", GPUS="2") == 0
    options, words = torchrun_words(cluster.words("torchrun"))
    command, params = parsed(words)
    assert (options.nproc_per_node, command, params["dataset"]) == ("2", "finetune", "roco")
    assert cluster.run("torchrun.sh", STATE="running", CODE="1") == 1


def test_what_is_missing_is_said(cluster: Cluster) -> None:
    for template in TEMPLATES:
        process = cluster.start(template, OUT="")
        said, _ = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "OUT" in said
    assert not (cluster.root / "record" / "torchrun").exists()
