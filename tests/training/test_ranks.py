"""Several processes: the same gradients, runs and results as one, and an end with its reason when one is lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_gradients import CASES, gradients
from safetensors.torch import load_file

from grrcoca_cli.training.ranks import ALONE

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
            assert found == pytest.approx(losses, abs=1e-5)
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
