"""Where to compute, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grrcoca_cli.errors import OutOfResources, UsageError
from grrcoca_cli.training.ranks import local_rank


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA where there is one, else Apple's MPS, else the CPU; otherwise a torch device name.

    Under torchrun, ``cuda`` is this process's own GPU of the machine.

    Raises:
        UsageError: The device is not a device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and (own := local_rank()) is not None:
        name = f"cuda:{own}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here; try auto or cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL and allocations without a device go by
    return device


def is_bf16(device: torch.device, precision: str) -> bool:
    """Whether to compute in bf16: ``auto`` does on a GPU and in float32 elsewhere."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def used_precision(device: torch.device, precision: str) -> str:
    """The precision that ``precision`` means on ``device``: ``bf16`` or ``float32``."""
    return "bf16" if is_bf16(device, precision) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16(device, precision))


@contextmanager
def explain_out_of_memory(what: str) -> Iterator[None]:
    """Turn an allocation failure into one line with ways out; ``what`` names the sizes that did not fit.

    Raises:
        OutOfResources: There was not enough memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise OutOfResources(
                f"out of memory with {what}: lower the batch size, raise training.accumulation, "
                "or set model.gradient_checkpointing=true"
            ) from error
        raise
