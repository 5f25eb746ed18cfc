"""An exponential moving average of the weights, often better than the last ones (Polyak and Juditsky, 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from grrcoca_cli.training.sharding import like, local


class Ema:
    """Running average of every parameter, in float32: ``average += (1 - decay) * (weight - average)``.

    The decay warms up as ``(1 + n) / (10 + n)`` over the updates n = 0, 1, …, so that first values are soon forgotten.
    Sharded parameters (FSDP2) have sharded averages: each process keeps its own part, and nothing is sent.

    Args:
        model: Its parameters at hand are the first averages.
        decay: The highest, reached after about ``10 / (1 - decay)`` updates; 0 to below 1.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages towards the weights; called after each optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [local(self.averages[name]) for name, _ in model.named_parameters()]
        weights = [local(parameter.detach()).float() for parameter in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor], updates: int) -> None:
        """Go on from saved ``averages``, whole tensors by parameter name, after so many ``updates``."""
        for name, average in self.averages.items():
            average.copy_(like(average, averages[name]))
        self.updates = updates

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside the block ``model`` has the averaged weights; behind it its own again, bit for bit."""
        _reshard(model)
        weights = [local(parameter.detach()) for parameter in model.parameters()]
        averages = [local(self.averages[name]) for name, _ in model.named_parameters()]
        own = [weight.clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_copy_(weights, averages)
        try:
            yield
        finally:
            # A forward pass may have left gathered copies of the averages behind, which the next one would read.
            _reshard(model)
            with torch.no_grad():
                torch._foreach_copy_(weights, own)


def _reshard(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
