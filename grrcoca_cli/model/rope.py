"""Rotary position embedding (Su et al., 2021): each pair of channels is turned by an angle that its position sets.

Channels c and c + k/2 of a head are a pair. With k = 6 channels and the angles a, b and c of one position:

    x        = [ x0     x1     x2     x3     x4     x5   ]
    partner  = [ x3     x4     x5     x0     x1     x2   ]    x rolled by k/2
    cos      = [ cos a  cos b  cos c  cos a  cos b  cos c]
    sin      = [-sin a -sin b -sin c  sin a  sin b  sin c]
    rotated  = x * cos + partner * sin

The pair (x0, x3) becomes (x0 cos a - x3 sin a, x3 cos a + x0 sin a): a rotation by the angle a.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from grrcoca_cli.model.precision import at_least_float32


class Rope(NamedTuple):
    """The factors of each channel and of its partner: each (N, k), or (B, 1, N, k) where rows differ."""

    cos: Tensor
    sin: Tensor


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate each channel pair of ``x`` (B, h, N, k) by its position's angle; same shape and dtype."""
    partner = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * rope.cos, partner, rope.sin).to(x.dtype)


@dataclass(frozen=True)
class RotaryGrid:
    """The positions of a sequence or of a patch grid, and their angles.

    Along each axis the angle of pair j is ``(index + offset) * step * base ** (-2 j / m)``, where the axis has m = k
    channels in a sequence (Su et al., 2021, eq. 15) and m = k/2 in a grid. In a grid the first half of the pairs turns
    by the row and the second half by the column (Heo et al., 2024, section 3.1).

    Attributes:
        shape: (length,) of a sequence, or (rows, columns) of a grid in raster order.
        head_width: Channels k of a head.
        base: Ratio between the highest frequency and the one that follows the lowest.
        step: Angle of the first pair between neighbours, in radians.
        offset: Added to every index.
        prefix: Tokens before the first position that are not rotated.
    """

    shape: tuple[int, ...]
    head_width: int
    base: float
    step: float = 1.0
    offset: float = 0.0
    prefix: int = 0

    def factors(self, device: torch.device, dtype: torch.dtype) -> Rope:
        """Both tables (prefix + N, k)."""
        channels = self.head_width // len(self.shape)
        frequencies = self.base ** -(torch.arange(0, channels, 2, device=device).to(dtype) / channels)
        axes = torch.meshgrid(*(torch.arange(length, device=device) for length in self.shape), indexing="ij")
        indices = ((axis.flatten().to(dtype) + self.offset) * self.step for axis in axes)
        angles = torch.cat([torch.outer(index, frequencies) for index in indices], dim=-1)  # (N, k/2)
        angles = torch.cat([angles.new_zeros(self.prefix, angles.shape[1]), angles])
        cos, sin = angles.cos(), angles.sin()
        return Rope(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


class RopeTable(nn.Module):
    """The factors of a `RotaryGrid` as buffers that no checkpoint holds.

    They are computed here and not in the forward pass, so that tracing (`torch.export`, `torch.compile`) never sees
    their computation. They are computed again whenever the module moves, so that they are float32, or float64 in a
    float64 model, whatever dtype the weights are cast to, and are right after ``to_empty``.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: RotaryGrid) -> None:
        super().__init__()
        self.grid = grid
        # A model built on the meta device gets its weights by assignment, its tables here.
        device = torch.get_default_device()
        self._fill(torch.device("cpu") if device.type == "meta" else device, torch.get_default_dtype())

    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        # A tensor made in inference mode could not be trained with later.
        with torch.inference_mode(False), torch.no_grad():
            factors = self.grid.factors(device, at_least_float32(dtype))
        self.register_buffer("cos", factors.cos, persistent=False)
        self.register_buffer("sin", factors.sin, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill(self.cos.device, self.cos.dtype)
        return self

    def at(self, start: int, stop: int) -> Rope:
        """The factors of positions ``start`` to ``stop - 1``."""
        return Rope(self.cos[start:stop], self.sin[start:stop])
