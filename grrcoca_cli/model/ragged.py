"""Rows of different lengths without their padding, for every layer that treats positions one by one."""

from typing import cast

from torch import Tensor


class Ragged:
    """The real positions of a padded batch.

    Every layer except attention works on the real positions only, concatenated as one row. Attention pads its input
    and packs its output again. In batches of real captions, half of the positions are padding.
    """

    def __init__(self, real: Tensor) -> None:
        """``real`` (B, L), bool."""
        self._shape = real.shape
        # Without padding there is nothing to move.
        self._places = None if real.all() else real.flatten().nonzero().squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """The real positions of (B, L, …), row after row: (1, T, …)."""
        rows = x.flatten(0, 1)
        return (rows if self._places is None else rows.index_select(0, self._places)).unsqueeze(0)

    def pad(self, x: Tensor) -> Tensor:
        """The inverse of `pack`: (1, T, …) to (B, L, …), zeros at padding."""
        rows = x[0]
        if self._places is not None:
            rows = rows.new_zeros(self._shape.numel(), *rows.shape[1:]).index_copy(0, self._places, rows)
        return cast(Tensor, rows.unflatten(0, self._shape))
