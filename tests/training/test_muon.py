"""Muon in float32 is torch's Muon but for bfloat16's last digits."""

import pytest
import torch
from torch import Tensor, nn

from grrcoca_cli.training.muon import Float32Muon, orthogonalise


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 24), (24, 64), (32, 32))]


def test_it_follows_torch() -> None:
    ours, theirs = matrices(), matrices()
    settings = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    mine, other = Float32Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    starts = [each.detach().clone() for each in ours]
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, start in zip(ours, theirs, starts, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()  # bfloat16 keeps some three digits
    assert mine.state_dict().keys() == other.state_dict().keys()
    for a, b in zip(mine.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
        assert a.keys() == b.keys()
        torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"])


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values: Tensor = torch.linalg.svdvals(found)
    assert 0.5 < values.min() <= values.max() < 1.5
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ found @ v.T
    torch.testing.assert_close(rotated, rotated.diagonal().diag(), atol=1e-4, rtol=0)


def test_a_parameter_without_a_gradient_stays() -> None:
    first, second, _ = matrices()
    before = first.detach().clone()
    second.grad = torch.ones_like(second)
    Float32Muon([first, second], lr=1e-2).step()
    assert torch.equal(first, before)
