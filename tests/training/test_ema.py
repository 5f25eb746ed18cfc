"""The average of the weights: its values, its return to the model, its continuation, sharded and whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from grrcoca_cli.training.ema import Ema


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@torch.no_grad()
def fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        parameter.fill_(value)


def test_it_is_the_closed_form() -> None:
    model = linear()
    fill(model, 0.0)
    ema = Ema(model, decay=0.5)
    # Weights 1 from now on: the average is 1 minus the product of the decays, 0.1, 2/11, 3/12, … up to 0.5.
    fill(model, 1.0)
    left = 1.0
    for n in range(20):
        ema.update(model)
        left *= min(0.5, (1 + n) / (10 + n))
        for average in ema.averages.values():
            torch.testing.assert_close(average, torch.full_like(average, 1 - left))


def test_a_swap_there_and_back_is_bit_exact() -> None:
    model = linear().bfloat16()
    ema = Ema(model, decay=0.9)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    fill(model, 0.3)
    ema.update(model)
    filled = {name: value.clone() for name, value in model.state_dict().items()}

    def evaluate() -> None:
        with ema.swapped(model):
            for name, value in model.state_dict().items():
                expected = (0.1 * own[name].float() + 0.9 * filled[name].float()).bfloat16()
                torch.testing.assert_close(value, expected, rtol=1e-2, atol=0)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        evaluate()
    for name, value in model.state_dict().items():
        assert torch.equal(value, filled[name])


def test_it_goes_on_exactly_where_it_stopped() -> None:
    def walk(model: nn.Module, ema: Ema, steps: range) -> None:
        for step in steps:
            fill(model, float(step) ** 0.5)
            ema.update(model)

    model = linear()
    whole = Ema(model, decay=0.999)
    walk(model, whole, range(30))
    model = linear()
    first = Ema(model, decay=0.999)
    walk(model, first, range(11))
    kept = {name: tensor.clone() for name, tensor in first.averages.items()}
    second = Ema(linear(), decay=0.999)
    second.load(kept, 11)
    walk(model, second, range(11, 30))
    for name, average in whole.averages.items():
        assert torch.equal(average, second.averages[name])
    with pytest.raises(KeyError):
        second.load({"weight": kept["weight"]}, 11)


SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from grrcoca_cli.training.ema import Ema

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))

def build(sharded):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    if sharded:
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model

def walk(model, ema, steps, average_too):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        if average_too:
            with ema.swapped(model), torch.no_grad():
                seen.append(model(x).clone())
    return seen

one, two = build(False), build(True)
plain, sharded = Ema(one, 0.9), Ema(two, 0.9)
assert all(isinstance(average, DTensor) for average in sharded.averages.values())
for a, b in zip(walk(one, plain, range(4), True), walk(two, sharded, range(4), True), strict=True):
    torch.testing.assert_close(a, b)
whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in sharded.averages.items()}
for name, average in plain.averages.items():
    torch.testing.assert_close(whole[name], average)
for name, parameter in one.named_parameters():  # evaluations between the steps left no trace in the weights
    torch.testing.assert_close(dict(two.named_parameters())[name].full_tensor(), parameter)
again = Ema(build(True), 0.9)
again.load({name: tensor.clone() for name, tensor in whole.items()}, 4)
for name, average in again.averages.items():
    assert torch.equal(average.full_tensor(), whole[name])
dist.destroy_process_group()
"""


def test_sharded_over_two_processes_it_is_the_same(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SHARDED, str(tmp_path / "meeting")]
    ranks = [
        subprocess.Popen([*words, str(rank)], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
