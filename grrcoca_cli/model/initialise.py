"""The one place where weights are initialised."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.roles import role_of

INITIAL_TEMPERATURE = 0.07
EMBEDDING_STD = 0.02
SIGMOID_TEMPERATURE, SIGMOID_BIAS = 0.1, -10.0  # Zhai et al., 2023, section 3.2


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Fill every parameter of a model from torch's global generator, by its role (`role_of`).

    | role | values |
    |---|---|
    | matrix | N(0, 1 / fan-in), so that narrow models learn as fast as wide ones |
    | branch_end | the same over sqrt(2 x depth of the tower): ends of residual branches (Radford et al., 2019, 2.3) |
    | embedding | N(0, 0.02^2): token embeddings, the vocabulary head, [CLS] and the image prefix |
    | positions | N(0, position_std^2) |
    | normal | N(0, 1): pooler queries, which are normalised first |
    | zero, one | biases; norms |
    | temperature | 0.07, or 0.1 with the sigmoid loss |
    | pair_bias | -10, the sigmoid loss's bias, so that training begins near the answer "no pair" |
    """
    names = [name for name, _ in model.named_parameters()]
    depth = {tower: _depth(names, tower) for tower in ("image_encoder", "text_decoder")}
    for name, parameter in model.named_parameters():
        match role_of(name).initial:
            case "temperature":
                parameter.fill_(-math.log(SIGMOID_TEMPERATURE if "logit_bias" in names else INITIAL_TEMPERATURE))
            case "pair_bias":
                parameter.fill_(SIGMOID_BIAS)
            case "normal":
                parameter.normal_()
            case "positions":
                parameter.normal_(std=config.position_std)
            case "embedding":
                parameter.normal_(std=EMBEDDING_STD)
            case "zero":
                parameter.zero_()
            case "one":
                parameter.fill_(1)
            case "matrix":
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            case "branch_end":
                scale = 1 / math.sqrt(2 * depth[name.split(".")[0]])
                parameter.normal_(std=scale * parameter.shape[1] ** -0.5)


def _depth(names: list[str], tower: str) -> int:
    """How many blocks a tower has: its parameters are named tower.stack.index.…"""
    blocks = {tuple(name.split(".")[:3]) for name in names if name.startswith(tower)}
    return sum(part[-1].isdigit() for part in blocks if len(part) == 3)


class SkipInit(TorchFunctionMode):
    """While active, nothing is initialised: for a model whose weights are loaded next.

    On the ``meta`` device alone, torch would still import its compiler to draw random numbers there, which takes a
    second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Skip initialisers; run everything else."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func is Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
