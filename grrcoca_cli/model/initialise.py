"""The one place where weights get their first values."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grrcoca_cli.config import ModelConfig

INITIAL_TEMPERATURE = 0.07
EMBEDDING_STD = 0.02
SIGMOID_TEMPERATURE, SIGMOID_BIAS = 0.1, -10.0  # Zhai et al., 2023, section 3.2


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Fill every parameter of a model from torch's global generator.

    Matrices are drawn from N(0, 1 / fan-in), so that narrow models learn as fast as wide ones, and those that end a
    residual branch are divided by sqrt(2 x depth of their tower) (Radford et al., 2019, section 2.3). Token
    embeddings, the vocabulary head and [CLS] come from N(0, 0.02^2), learned positions from a normal distribution of
    the configured width, pooler queries from N(0, 1), since they are normalised first; biases are 0, norms 1, the
    temperature 0.07; with the sigmoid loss it is 0.1, and the bias of its logits -10, so that training begins near the
    answer "no pair".
    """
    names = [name for name, _ in model.named_parameters()]
    depth = {tower: _depth(names, tower) for tower in ("image_encoder", "text_decoder")}
    for name, parameter in model.named_parameters():
        tower, leaf = name.split(".")[0], name.split(".")[-1]
        if leaf == "logit_scale":
            parameter.fill_(-math.log(SIGMOID_TEMPERATURE if "logit_bias" in names else INITIAL_TEMPERATURE))
        elif leaf == "logit_bias":
            parameter.fill_(SIGMOID_BIAS)
        elif leaf == "queries":
            parameter.normal_()
        elif leaf == "positions":
            parameter.normal_(std=config.position_std)
        elif leaf == "cls" or "token_embedding" in name or ".head." in name:
            parameter.normal_(std=EMBEDDING_STD)
        elif leaf == "bias":
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1)
        else:
            ends_branch = tower in depth and name.endswith((".out.weight", ".down.weight"))
            scale = 1 / math.sqrt(2 * depth[tower]) if ends_branch else 1
            parameter.normal_(std=scale * parameter.shape[1] ** -0.5)


def _depth(names: list[str], tower: str) -> int:
    """How many blocks a tower has: its parameters are named tower.stack.index.…"""
    blocks = {tuple(name.split(".")[:3]) for name in names if name.startswith(tower)}
    return sum(part[-1].isdigit() for part in blocks if len(part) == 3)


class WithoutFirstValues(TorchFunctionMode):
    """While active, nothing is initialised: for a model whose weights are loaded next.

    On the ``meta`` device alone, torch would still import its compiler to draw random numbers there: a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass over initialisers; run everything else."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func is Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
