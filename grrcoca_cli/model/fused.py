"""RMSNorm and the gated half of a GEGLU layer with hand-written gradients: fewer passes over memory, less kept.

Autograd would keep every intermediate of their width for the backward pass. These keep only their input and compute
the rest again, which costs a few passes over data in the cache and no matrix product.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grrcoca_cli.model.precision import at_least_float32


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension (Zhang and Sennrich, 2019), computed in at least float32.

    Under autocast the result has autocast's dtype, since a matrix product reads it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if torch.is_grad_enabled():
            return cast(Tensor, _RMSNorm.apply(x, self.weight, self.eps, dtype))
        return (_widen(x) * _inverse_rms(x, self.eps)).mul_(self.weight).to(dtype)


def gated_product(gate_up: Tensor, weight: Tensor) -> Tensor:
    """``(gelu(gate) * up) @ weight.T`` of ``gate_up`` (…, 2 H), gate first, and ``weight`` (D, H); returns (…, D)."""
    return cast(Tensor, _GatedProduct.apply(gate_up, weight))


def _widen(x: Tensor) -> Tensor:
    return x.to(at_least_float32(x.dtype))


def _inverse_rms(x: Tensor, eps: float | None) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension of (…, D): (…, 1), in at least float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=at_least_float32(x.dtype))
    return torch.addcmul(norm.new_tensor(eps or 0.0), norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float | None, dtype: torch.dtype) -> Tensor:
        scale = _inverse_rms(x, eps)
        ctx.save_for_backward(x, scale, weight)
        return (_widen(x) * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        gradient = gradient.to(scale.dtype)
        normed = _widen(x) * scale
        rows = (gradient * normed).flatten(0, -2)  # (N, D)
        along = torch.mv(rows, weight.to(scale.dtype)).view_as(scale).div_(x.shape[-1])
        of_x = (gradient * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return of_x.to(x.dtype), rows.sum(dim=0).to(weight.dtype), None, None


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, dim=-1)
        with torch.autocast(gate_up.device.type, enabled=False):
            return F.linear(F.gelu(gate).mul_(up), weight.to(gate_up.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        gradient = gradient.to(gate_up.dtype)
        activated = F.gelu(gate)
        of_weight = gradient.flatten(0, -2).T @ (activated * up).flatten(0, -2)
        of_product = gradient @ weight.to(gate_up.dtype)
        of_gate_up = torch.empty_like(gate_up)
        of_gate, of_up = of_gate_up.chunk(2, dim=-1)
        torch.mul(of_product, activated, out=of_up)
        of_gate.copy_(torch.ops.aten.gelu_backward(of_product.mul_(up), gate))
        return of_gate_up, of_weight.to(weight.dtype)
