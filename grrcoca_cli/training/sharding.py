"""Between whole tensors, as files hold them, and the parts of FSDP2 that a process holds."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors gathered, on the CPU; all processes call. Others stay as they are."""
    return {
        name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()
    }


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Whole ``values`` on the device of ``tensor``, and split among the processes as it is."""
    moved = values.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return moved
    return distribute_tensor(moved, tensor.device_mesh, tensor.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
