"""The vocabulary head and its cross-entropy in one, a few target rows at a time: logits never stand whole in memory.

A softmax over V tokens needs 4 V bytes a target and as much again for its gradient, the largest tensors of a training
step. Here each chunk of rows is projected, scored and turned into its share of the gradients at once, so that nothing
is computed twice and one chunk is all that stands (Wijmans et al., 2024, and Hsu et al., 2024, recompute instead).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 2**26  # of float32 logits: large enough that reading the weight again for each chunk is no cost


class TokenStatistics(NamedTuple):
    """What a model makes of each target token.

    Attributes:
        nll: Negative log-likelihood of the target, in nats (T,), float32.
        confidence: Probability of the likeliest token (T,), float32.
        correct: Whether the likeliest token is the target (T,), bool.
    """

    nll: Tensor
    confidence: Tensor
    correct: Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, of ``targets`` (T,) under logits ``hidden @ weight.T``; a float32 scalar.

    Products run in autocast's dtype where it is on, log-sum-exp and the weight's gradient always in float32. Gradients
    are computed in the forward pass where they are needed and scaled in the backward pass.

    Args:
        hidden: States at target positions alone (T, D).
        weight: Of the vocabulary head (V, D).
        targets: Token ids (T,).
    """
    return cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled()))


@torch.no_grad()
def token_statistics(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenStatistics:
    """Loss, confidence and correctness of each of ``targets`` (T,), for evaluation; arguments as in the loss."""
    hidden, weight = _for_products(hidden, weight)
    nll, confidence = hidden.new_empty(2, len(targets), dtype=torch.float32)
    correct = torch.empty_like(targets, dtype=torch.bool)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(len(targets), len(weight)):
            logprobs, nll[rows] = _score(hidden[rows], weight, targets[rows])
            best, guess = logprobs.max(dim=-1)
            confidence[rows], correct[rows] = best.exp(), guess == targets[rows]
    return TokenStatistics(nll, confidence, correct)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradients: bool) -> Tensor:
        h, w = _for_products(hidden, weight)
        of_hidden = torch.empty_like(hidden) if with_gradients and ctx.needs_input_grad[0] else None
        of_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if with_gradients and ctx.needs_input_grad[1] else None
        )
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(targets), len(weight)):
                logprobs, nll = _score(h[rows], w, targets[rows])
                total += nll.sum()
                if of_hidden is None and of_weight is None:
                    continue
                # The gradient of the logits is the probabilities, less one at the target.
                slope = logprobs.exp_()
                slope[torch.arange(len(slope), device=slope.device), targets[rows]] -= 1
                slope = slope.to(h.dtype)
                if of_hidden is not None:
                    of_hidden[rows] = slope @ w
                if of_weight is not None:
                    _add_product(of_weight, slope.T, h[rows])
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Scaled where they stand, as they may be a model's largest; torch sees that, so that a second pass raises.
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden.mul_(upstream),
            None if of_weight is None else of_weight.mul_(upstream).to(ctx.weight_dtype),
            None,
            None,
        )


def _for_products(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that their product is to run in."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.detach().to(dtype), weight.detach().to(dtype)


def _chunks(targets: int, vocabulary: int) -> Iterator[slice]:
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    return (slice(start, start + rows) for start in range(0, targets, rows))


def _score(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, V) and the targets' negated ones (T,), both float32."""
    logprobs = F.linear(hidden, weight).log_softmax(dim=-1, dtype=torch.float32)
    return logprobs, -logprobs.gather(1, targets.unsqueeze(1)).squeeze(1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``, whose dtype may be the finer one."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
