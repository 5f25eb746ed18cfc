"""The dtype in which norms, rotations, softmaxes and losses are computed."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
