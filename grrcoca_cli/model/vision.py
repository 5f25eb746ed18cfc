"""The image encoder: a Vision Transformer (Dosovitskiy et al., 2021) without a class token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.layers import SelfAttention, make_feed_forward, make_norm
from grrcoca_cli.model.precision import at_least_float32
from grrcoca_cli.model.recompute import run_layers
from grrcoca_cli.model.rope import Rope, RopeTable, RotaryGrid

RASTER_ROPE_BASE = 10_000.0
AXIAL_ROPE_BASE = 100.0


class ImageBlock(nn.Module):
    """Pre-norm transformer block without a mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.image_width
        self.attention_norm = make_norm(config.image_norm, width)
        self.attention = SelfAttention(width, config.image_heads, bias=config.attention_bias, qk_norm=config.qk_norm)
        self.mlp_norm = make_norm(config.image_norm, width)
        self.mlp = make_feed_forward(config.image_mlp, width, wide=config.geglu == "wide")

    def forward(self, x: Tensor, rope: Rope | None) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x = x + self.attention(self.attention_norm(x), rope)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Images to image tokens, in raster order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.image_width)
        self.positions = (
            nn.Parameter(torch.empty(self.side**2, config.image_width)) if config.image_positions != "rope" else None
        )
        self.rope = RopeTable(_grid(config, self.side)) if config.image_positions != "learned" else None
        self.blocks = nn.ModuleList(ImageBlock(config) for _ in range(config.image_layers))
        self.norm = make_norm(config.image_norm, config.image_width)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to image tokens (B, N, D), of which patch dropout leaves fewer in training."""
        # A strided convolution is a matrix product on unfolded patches, and faster as one.
        patches = F.pixel_unshuffle(images, self.config.patch_size).flatten(2).transpose(1, 2)  # (B, N, 3 P P)
        # At least float32 from here, with or without learned positions: autocast would keep a sum of bf16 in bf16.
        x = self.patch_embedding(patches)  # (B, N, D)
        x = x.to(at_least_float32(x.dtype))
        if self.positions is not None:
            x = x + self.positions
        rope = None if self.rope is None else Rope(self.rope.cos, self.rope.sin)
        if self.training and self.config.patch_dropout:
            x, rope = self._drop_patches(x, rope)
        x = run_layers(self.blocks, x, rope, recompute=self.training and self.config.gradient_checkpointing)
        return self.norm(x)  # type: ignore[no-any-return]

    def _drop_patches(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Rope | None]:
        """A random subset of each row's patches; a kept patch keeps its own angle."""
        B, N, D = x.shape
        kept_count = max(1, round(N * (1 - self.config.patch_dropout)))
        kept = torch.rand(B, N, device=x.device).argsort(dim=1)[:, :kept_count].sort(dim=1).values  # (B, kept)
        x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, D))
        if rope is not None:
            rope = Rope(rope.cos[kept].unsqueeze(1), rope.sin[kept].unsqueeze(1))  # each (B, 1, kept, k)
        return x, rope


def _grid(config: ModelConfig, side: int) -> RotaryGrid:
    head_width = config.image_width // config.image_heads
    if config.rope == "raster":
        return RotaryGrid((side**2,), head_width, RASTER_ROPE_BASE)
    return RotaryGrid((side, side), head_width, AXIAL_ROPE_BASE)
