"""Gradient checkpointing: layers that keep their input alone and compute the rest again in the backward pass."""

import ctypes
import functools
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TRIM_EVERY = 6  # layers; at 229 M parameters every twelfth peaks 3 % higher, every one 1 % lower and 8 % slower


def run_layers(layers: Iterable[nn.Module], x: Tensor, *inputs: object, recompute: bool) -> Tensor:
    """``x`` through ``layers`` in turn, each given ``inputs`` besides; the same whether they ``recompute`` or not."""
    for number, layer in enumerate(layers):
        if not recompute:
            x = layer(x, *inputs)
            continue
        if number % TRIM_EVERY == 0 and x.device.type == "cpu":
            give_back_freed()
            if x.requires_grad:
                x.register_hook(lambda _: give_back_freed())
        x = checkpoint(layer, x, *inputs, use_reentrant=False)
    return x


def give_back_freed() -> None:
    """Let the system have the memory that tensors on a CPU have let go of.

    In a backward pass gradients are born while activations die, and the C library keeps the gaps between them for
    later. GNU's empties them where it is told to (malloc_trim); others are left alone.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no C library to be had that way, or one without this call
        return None
