"""A work without its matrix products: what is left of a bf16 step can be read where a processor has no bf16 products.

Every product and attention gives zeros of the right shape at once. All else happens: casts, norms, activations, the
softmax over the vocabulary, the optimiser, every tensor in memory. Imported by workers alone, in either environment.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


class WithoutProducts(TorchDispatchMode):
    """While it is entered, products are not computed.

    Attributes:
        seconds: In all other operations so far, without what Python and this class add to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = op.name().removeprefix("aten::").partition(".")[0]
        if name in PRODUCTS or "scaled_dot_product" in name:
            return _zeros(op, args, kwargs or {})
        began = time.perf_counter()
        result = op(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - began
        return result


def _zeros(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "out" in kwargs:
        return kwargs["out"]
    device = next(each.device for each in args if isinstance(each, Tensor))
    shapes = tree_map_only(Tensor, lambda each: each.to("meta"), (args, kwargs))
    return tree_map_only(Tensor, lambda each: torch.zeros_like(each, device=device), op(*shapes[0], **shapes[1]))
