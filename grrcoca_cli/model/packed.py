"""A text decoder for decoding on a CPU: the same layers, with weights in half the bytes and in the order of reading.

Each decoded token reads every weight once, so that its time is the bytes of the weights over the memory bandwidth.
FBGEMM keeps a weight as float16 in panels of its own; activations, sums and results stay float32.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from grrcoca_cli.model.text import TextDecoder

FLOAT16_MAX = torch.finfo(torch.float16).max


class PackedLinear(nn.Module):
    """A linear layer whose weight is float16, packed once; float32 in and out, no gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach().float()
        weight = linear.weight.detach().float()
        # A plain attribute: the packed weight is not a tensor, and no checkpoint holds it.
        self._packed = torch.ops.quantized.linear_prepack_fp16.default(weight, bias)
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D')."""
        return cast(Tensor, self._multiply(x.float(), self._packed))


def can_pack(text: TextDecoder) -> bool:
    """Whether this machine has the kernels, ``text`` is on the CPU and its weights are within float16's range."""
    weights = [module.weight for module in text.modules() if isinstance(module, nn.Linear)]
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and all(weight.device.type == "cpu" for weight in weights)
        and all(weight.dtype != torch.float64 for weight in weights)
        and all(weight.abs().max().item() <= FLOAT16_MAX for weight in weights)
    )


def pack_for_decoding(text: TextDecoder) -> TextDecoder:
    """A decoder with packed linear layers that shares everything else with ``text``; only for `TextDecoder.step`.

    The projections of image tokens stay as they are: they run once per image, not once per token.
    """
    shared: dict[int, object] = {id(parameter): parameter for parameter in text.parameters()}
    packed = copy.deepcopy(text, shared)
    for name, module in list(packed.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith("key_value"):
            parent, _, leaf = name.rpartition(".")
            setattr(packed.get_submodule(parent), leaf, PackedLinear(module))
    return packed.eval()
