"""The chunked head: same loss and gradients as the plain one, whatever the chunk, dtype and use."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grrcoca_cli.model import linear_cross_entropy as module
from grrcoca_cli.model.linear_cross_entropy import linear_cross_entropy, token_statistics

T, D, V = 37, 16, 50


@pytest.fixture(autouse=True, params=[(1, 1), (5, 2), (37, 9), (37, 37), (100, 100)])
def rows_a_chunk_and_a_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, block = request.param
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk * 4 * V)
    monkeypatch.setattr(module, "BLOCK_BYTES", block * 4 * V)


def inputs(count: int = T) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, V, (count,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def test_loss_and_gradients_are_the_plain_ones() -> None:
    hidden, weight, targets = inputs()
    loss, expected = linear_cross_entropy(hidden, weight, targets) / 7, plain(hidden, weight, targets) / 7
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    found = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_weight_that_is_used_twice_gets_both_gradients() -> None:
    hidden, weight, targets = inputs()

    def gradient_of(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        embedded = hidden + F.embedding(targets, weight)
        return torch.autograd.grad(loss(embedded, weight, targets), weight)[0]

    gradient, expected = gradient_of(linear_cross_entropy), gradient_of(plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_second_backward_pass_raises_rather_than_being_wrong() -> None:
    hidden, weight, targets = inputs()
    loss = 3 * linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    tensors = inputs()
    tensors[frozen].requires_grad_(False)
    linear_cross_entropy(*tensors).backward()
    expected = inputs()
    plain(*expected).backward()
    assert tensors[frozen].grad is None
    torch.testing.assert_close(tensors[1 - frozen].grad, expected[1 - frozen].grad, rtol=1e-4, atol=1e-5)


def test_no_targets_are_no_loss() -> None:
    hidden, weight, targets = inputs(0)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0
    assert token_statistics(hidden, weight, targets).nll.shape == (0,)


def test_without_gradients_only_the_loss_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_plus_product")
    hidden, weight, targets = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, targets).detach(), rtol=1e-5, atol=0)


def test_under_autocast_it_is_as_near_to_float32_as_the_plain_one() -> None:
    hidden, weight, targets = inputs()
    exact = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
    for near, reference, truth in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight)), exact, strict=True
    ):
        assert near.dtype == torch.float32
        assert (near - truth).norm() < 1.5 * (reference - truth).norm()


def test_token_statistics_by_hand() -> None:
    hidden, weight, targets = inputs()
    probabilities = F.linear(hidden, weight).softmax(dim=-1)
    found = token_statistics(hidden, weight, targets)
    torch.testing.assert_close(found.nll, -probabilities[range(T), targets].log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.confidence, probabilities.max(dim=-1).values)
    assert found.correct.tolist() == (probabilities.argmax(dim=-1) == targets).tolist()
    assert not found.nll.requires_grad
