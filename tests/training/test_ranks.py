"""Several processes: the same gradients, runs and results as one, and an end with its reason when one is lost."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grrcoca_cli.data.base import Share
from grrcoca_cli.training.ranks import ALONE
from tests.conftest import TINY, set_flags
from tests.training.ranks_gradients import CASES, gradients

HERE = Path(__file__).parent


def start(size: int, *words: str, **environment: str) -> list[subprocess.Popen[str]]:
    """``python WORDS`` as ``size`` processes that know each other, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
        )
        for rank in range(size)
    ]


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of every case, computed by two and by four processes."""
    out = tmp_path_factory.mktemp("gradients")
    for size in (2, 4):
        (out / str(size)).mkdir()
        processes = start(size, str(HERE / "ranks_gradients.py"), str(out))
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert not any(process.returncode for process in processes), "\n".join(errors)
    return out


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(shared_out: Path, name: str) -> None:
    losses, expected = gradients(name, "ddp", ALONE)
    for size in (2, 4):
        for strategy in ("ddp", "fsdp2"):
            found = json.loads((shared_out / str(size) / f"{strategy}-{name}.json").read_text())
            assert found == pytest.approx(losses, rel=1e-6, abs=1e-5)
            shared = load_file(shared_out / str(size) / f"{strategy}-{name}.safetensors")
            assert shared.keys() == expected.keys()
            assert relative_error(shared, expected) < 1e-6
            for key, gradient in expected.items():
                torch.testing.assert_close(
                    shared[key], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
                )


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients over their own: sums in another order differ in the last digits."""
    difference = torch.cat([(found[key] - expected[key]).flatten() for key in expected])
    return (difference.norm() / torch.cat([gradient.flatten() for gradient in expected.values()]).norm()).item()


def test_accumulated_pairs_compete_as_one_batch() -> None:
    whole, cached, micro = (gradients(name, "ddp", ALONE) for name in ("whole", "cached", "micro"))
    assert cached[0] == pytest.approx(whole[0], abs=1e-5)
    assert relative_error(cached[1], whole[1]) < 1e-6
    assert micro[0]["contrastive_loss"] < whole[0]["contrastive_loss"] - 0.1


def test_orders_shared_out_are_the_orders_of_one() -> None:
    for indices in (list(range(12)), list(range(7)), [5, 3, 1]):
        for size in (1, 2, 3, 4):
            assert [index for rank in range(size) for index in Share(rank, size).of(indices)] == indices


def train(out: Path, shards: Path, size: int, *settings: str) -> list[subprocess.Popen[str]]:
    """Start pretraining in ``size`` processes."""
    flags = set_flags(
        *TINY, "training.steps=8", "training.save_every=2", "training.eval_every=4", "training.keep=9", *settings
    )
    words = ["-m", "grrcoca_cli", "pretrain", "--recipe", "demo", "--data", str(shards), "--out", str(out)]
    return start(size, *words, "--device", "cpu", *flags)


def finish(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes, and what was said."""
    said = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], "\n".join(err for _, err in said)


def losses(out: Path) -> list[list[float]]:
    """Every loss of the log, row by row."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [[value for key, value in row.items() if "loss" in key or key == "step"] for row in rows]


def wait_for_rows(out: Path, count: int) -> None:
    """Until the log has so many."""
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory, phantom_shards: Path) -> Path:
    """Two processes with FSDP2 that nobody interrupted."""
    out = tmp_path_factory.mktemp("sharded") / "run"
    codes, said = finish(train(out, phantom_shards, 2, "distributed.strategy=fsdp2", "training.ema=0.9"))
    assert codes == [0, 0], said
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    return load_file(out / "checkpoints" / "step-8" / "model.safetensors")


def test_killed_and_started_again_two_sharded_processes_equal_an_unbroken_run(
    sharded_run: Path, phantom_shards: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "run", ("distributed.strategy=fsdp2", "training.ema=0.9")
    processes = train(out, phantom_shards, 2, *settings)
    wait_for_rows(out, random.randrange(4, 8))
    for process in processes:
        process.kill()
    finish(processes)
    codes, said = finish(train(out, phantom_shards, 2, *settings))
    assert codes == [0, 0], said
    assert losses(out) == losses(sharded_run)  # the same ids, or the losses would differ
    assert relative_error(weights(out), weights(sharded_run)) < 1e-6


def test_a_checkpoint_of_two_sharded_processes_goes_on_in_one(
    sharded_run: Path, phantom_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(sharded_run, out)
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / f"step-{step}", ignore_errors=True)
    codes, said = finish(train(out, phantom_shards, 1, "training.ema=0.9"))
    assert codes == [0], said
    assert "continuing from" in said
    for ours, theirs in zip(losses(out), losses(sharded_run), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert relative_error(weights(out), weights(sharded_run)) < 1e-5


def test_a_process_that_hangs_ends_all_with_the_reason(phantom_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = train(out, phantom_shards, 2, "training.steps=100000", "distributed.timeout=5")
    wait_for_rows(out, 4)
    processes[1].send_signal(signal.SIGSTOP)
    _, said = processes[0].communicate(timeout=60)
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 5, said
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "failed"
    assert "did not answer" in status["reason"]
    assert "Traceback" not in said


def test_a_signal_to_one_process_stops_all_and_saves(phantom_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = train(out, phantom_shards, 2, "training.steps=100000")
    wait_for_rows(out, 4)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = finish(processes)
    assert codes == [75, 75], said
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert (out / "checkpoints" / f"step-{status['step']}").is_dir()
    assert said.count("stopped after step") == 1  # one process speaks


def test_errors_before_training_meet_every_process(tmp_path: Path) -> None:
    codes, said = finish(train(tmp_path / "run", tmp_path / "nothing.tar", 2))
    assert codes == [2, 2]
    assert said.count("no shard matches") == 1


def test_captions_and_scores_are_those_of_one_process(tiny_run: Path, phantom_studies: Path, tmp_path: Path) -> None:
    words = ["-m", "grrcoca_cli", "caption", str(phantom_studies), "--checkpoint", str(tiny_run), "--device", "cpu"]
    outputs = []
    for size in (1, 2):
        out = tmp_path / f"{size}.jsonl"
        codes, said = finish(start(size, *words, "--format", "jsonl", "--out", str(out)))
        assert codes == [0] * size, said
        outputs.append([json.loads(line) for line in out.read_text().splitlines()])
    assert [row["caption"] for row in outputs[0]] == [row["caption"] for row in outputs[1]]
    assert [row["file"] for row in outputs[0]] == [row["file"] for row in outputs[1]]
    assert len(outputs[0]) > 16

    words = ["-m", "grrcoca_cli", "eval", "--checkpoint", str(tiny_run), "--data", str(phantom_studies), "--json"]
    found = []
    for size in (1, 2):
        said = [process.communicate(timeout=240) for process in start(size, *words, "--device", "cpu")]
        assert all(not out for out, _ in said[1:])
        found.append(json.loads(said[0][0])["metrics"])
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert found[1][name]["value"] == pytest.approx(found[0][name]["value"], abs=1e-5), name
