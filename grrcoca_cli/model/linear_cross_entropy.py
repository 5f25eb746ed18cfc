"""The vocabulary head and its cross-entropy in one, a few target rows at a time, so that memory never holds all logits.

A softmax over V tokens needs 4 V bytes per target and as much again for its gradient: the largest tensors of a training
step. Here each chunk of rows is projected, scored and turned into its share of the gradients at once. Nothing is
computed twice, and only one chunk is in memory. Wijmans et al. (2024) and Hsu et al. (2024) recompute instead.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from grrcoca_cli.model.precision import at_least_float32

CHUNK_BYTES = 2**27  # of logits: large enough that reading the weight again for each chunk costs little
BLOCK_BYTES = 2**23  # of float32 logits: small enough to stay in a CPU's cache


class TokenStatistics(NamedTuple):
    """How well a model predicts each target token.

    Attributes:
        nll: Negative log-likelihood of the target, in nats (T,), at least float32.
        confidence: Probability of the likeliest token (T,), at least float32.
        correct: Whether the likeliest token is the target (T,), bool.
    """

    nll: Tensor
    confidence: Tensor
    correct: Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, of ``targets`` (T,) under logits ``hidden @ weight.T``; a scalar.

    Products run in autocast's dtype if it is active. The log-sum-exp, and the sum of the weight's gradient over chunks,
    are computed in at least float32. Gradients are computed in the forward pass if they are needed, and scaled in the
    backward pass.

    Args:
        hidden: States at the target positions only (T, D).
        weight: Of the vocabulary head (V, D).
        targets: Token ids (T,).
    """
    return cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled()))


@torch.no_grad()
def token_statistics(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenStatistics:
    """Loss, confidence and correctness of each of ``targets`` (T,), for evaluation; arguments as in the loss."""
    hidden, weight = _to_compute_dtype(hidden, weight)
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(len(targets), weight):
            for logits, ids in _blocks(F.linear(hidden[rows], weight), targets[rows]):
                logprobs, nll = _score(logits, ids)
                best, guess = logprobs.max(dim=-1)
                parts.append(TokenStatistics(nll, best.exp(), guess == ids))
    return TokenStatistics(*(torch.cat(each) for each in zip(*parts, strict=True)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradients: bool) -> Tensor:
        h, w = _to_compute_dtype(hidden, weight)
        for_hidden, for_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        of_hidden = torch.empty_like(hidden) if for_hidden else None
        of_weight: Tensor | None = None
        total = torch.zeros((), device=hidden.device, dtype=at_least_float32(w.dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(targets), w):
                logits = F.linear(h[rows], w)
                total += _sum_loss(logits, targets[rows], derive=for_hidden or for_weight)
                if of_hidden is not None:
                    of_hidden[rows] = logits @ w
                if for_weight:
                    of_weight = _plus_product(of_weight, logits.T, h[rows])
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # Scaled in place, since they may be a model's largest tensors; torch notices, so that a second pass raises.
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden.mul_(upstream),
            None if of_weight is None else of_weight.to(ctx.weight_dtype).mul_(upstream),
            None,
            None,
        )


def _to_compute_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the matmul dtype (autocast's, if active)."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.detach().to(dtype), weight.detach().to(dtype)


def _chunks(targets: int, weight: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_BYTES // weight[:, 0].nbytes)
    return (slice(start, start + rows) for start in range(0, max(targets, 1), rows))


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, V) and the targets' negated ones (T,), both at least float32."""
    logprobs = logits.log_softmax(dim=-1, dtype=at_least_float32(logits.dtype))
    return logprobs, -logprobs.gather(1, targets.unsqueeze(1)).squeeze(1)


def _sum_loss(logits: Tensor, targets: Tensor, *, derive: bool) -> Tensor:
    """The summed loss of ``logits`` (T, V); if ``derive``, they are overwritten by its gradient."""
    total = torch.zeros((), device=logits.device, dtype=at_least_float32(logits.dtype))
    for block, ids in _blocks(logits, targets):
        logprobs, nll = _score(block, ids)
        total += nll.sum()
        if derive:
            slope = logprobs.exp_()  # the probabilities, less one at the target
            slope[torch.arange(len(ids), device=ids.device), ids] -= 1
            block.copy_(slope)
    return total


def _blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of both: on a CPU small enough for its cache, elsewhere few, since each call has a cost there."""
    most = BLOCK_BYTES if logits.device.type == "cpu" else CHUNK_BYTES
    rows = max(1, most // (4 * logits.shape[1]))
    return zip(logits.split(rows), targets.split(rows), strict=True)


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b``; several products are summed in at least float32."""
    if total is None:
        return a @ b
    if a.dtype != at_least_float32(a.dtype):
        return total.float().add_(a @ b)
    return torch.addmm(total, a, b, out=total)
