"""Hand-written gradients against autograd's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grrcoca_cli.model.fused import RMSNorm, gated_product


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (2, 3, 4, 12)], ids=str)
def test_rmsnorm_is_torchs(shape: tuple[int, ...]) -> None:
    norm, x, weights = RMSNorm(12, eps=1e-6), leaf(*shape), leaf(*shape, seed=1).detach()
    with torch.no_grad():
        norm.weight.copy_(leaf(12, seed=2))
    expected = F.rms_norm(x, (12,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), expected)
    found = torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight))
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), (x, norm.weight)))


@pytest.mark.parametrize("strided", [False, True])
def test_gated_product_is_the_plain_one(strided: bool) -> None:
    gate_up, weight, weights = leaf(2, 5, 16), leaf(6, 8, seed=1), leaf(2, 5, 6, seed=2).detach()
    given = gate_up.transpose(0, 1) if strided else gate_up
    weights = weights.transpose(0, 1) if strided else weights
    gate, up = given.chunk(2, dim=-1)
    expected = F.linear(F.gelu(gate) * up, weight)
    torch.testing.assert_close(gated_product(given, weight), expected)
    found = torch.autograd.grad((gated_product(given, weight) * weights).sum(), (gate_up, weight))
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), (gate_up, weight)))


def test_in_bf16_both_are_as_near_to_float32_as_autograds_own() -> None:
    norm, x, weight = RMSNorm(64, eps=1e-6), leaf(50, 64), leaf(24, 32, seed=1)

    def plain(x: Tensor) -> Tensor:
        gate, up = F.rms_norm(x, (64,), norm.weight.to(x.dtype), 1e-6).chunk(2, dim=-1)
        return F.linear(F.gelu(gate) * up, weight)

    exact = torch.autograd.grad(plain(x).square().sum(), (x, norm.weight, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = gated_product(norm(x), weight), plain(x.bfloat16())
    assert ours.dtype == torch.bfloat16
    near = torch.autograd.grad(ours.float().square().sum(), (x, norm.weight, weight))
    reference = torch.autograd.grad(theirs.float().square().sum(), (x, norm.weight, weight))
    for a, b, truth in zip(near, reference, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - truth).norm() < 1.5 * (b - truth).norm()
