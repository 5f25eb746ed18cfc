"""An existing image encoder as the start: Vision Transformers as timm and torchvision name them, from safetensors."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.errors import CheckpointRefused, UsageError
from grrcoca_cli.model.coca import CoCa

# Theirs to ours, tried in this order on each name. What no line matches is left out, and said.
_TIMM = (
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embedding.\1"),
    (r"pos_embed", r"positions"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"blocks.\1.attention.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"blocks.\1.mlp_norm.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"blocks.\1.mlp.up.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"blocks.\1.mlp.down.\2"),
    (r"norm\.(weight|bias)", r"norm.\1"),
)
_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
_TORCHVISION = (
    (r"conv_proj\.(weight|bias)", r"patch_embedding.\1"),
    (r"encoder\.pos_embedding", r"positions"),
    (_LAYER + r"ln_1\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (_LAYER + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attention.qkv.\2"),
    (_LAYER + r"self_attention\.out_proj\.(weight|bias)", r"blocks.\1.attention.out.\2"),
    (_LAYER + r"ln_2\.(weight|bias)", r"blocks.\1.mlp_norm.\2"),
    (_LAYER + r"mlp\.(?:0|linear_1)\.(weight|bias)", r"blocks.\1.mlp.up.\2"),
    (_LAYER + r"mlp\.(?:3|linear_2)\.(weight|bias)", r"blocks.\1.mlp.down.\2"),
    (r"encoder\.ln\.(weight|bias)", r"norm.\1"),
)
_INSIDE_A_BLOCK = re.compile(r"blocks\.\d|encoder\.layers\.|norm_pre\.")

_NEEDED = {
    "image_norm": "layernorm",
    "image_mlp": "gelu",
    "image_positions": "learned",
    "attention_bias": True,
    "qk_norm": False,
}


@dataclass(frozen=True)
class ImageWeightsReport:
    """What was taken out of a file of weights, and what was not.

    Attributes:
        path: The file.
        names: Whose names it uses.
        loaded: Parameters of the image encoder that it filled: all of them.
        unmatched: Tensors of the file that have no place here, in the file's order.
        left_out_positions: Rows of the position embedding that belonged to tokens other than patches.
        resampled: Sides of the position grid there and here, where they differ.
    """

    path: Path
    names: Literal["timm", "torchvision"]
    loaded: int
    unmatched: tuple[str, ...]
    left_out_positions: int
    resampled: tuple[int, int] | None

    def lines(self) -> list[str]:
        """For people: every tensor that was left out, and what nobody can see in such a file."""
        lines = [f"image encoder: {self.loaded} tensors from {self.path} ({self.names} names)"]
        if self.unmatched:
            lines.append(f"image encoder: not used: {', '.join(self.unmatched)}")
        if self.left_out_positions:
            rows = "the first row" if self.left_out_positions == 1 else f"the first {self.left_out_positions} rows"
            lines.append(f"image encoder: {rows} of the positions left out: there is no class token here to add it to")
        if self.resampled:
            there, here = self.resampled
            lines.append(f"image encoder: positions resampled from {there} x {there} to {here} x {here} patches")
        lines.append(
            "image encoder: heads, data.mean and data.std are not in such a file: see that they are as in its training"
        )
        return lines


def load_image_weights(model: CoCa, path: Path) -> ImageWeightsReport:
    """Fill the image encoder of ``model`` from a plain Vision Transformer (Dosovitskiy et al., 2021), all or nothing.

    Such a transformer mostly has a class token that its patches attend to, and ours has none: patch for patch the
    outputs are those of the source without its class token. A position grid of another side is interpolated, as the
    paper does for other resolutions (section 3.2); bicubic and with antialiasing, by our choice.

    Args:
        model: Its image encoder must be of the plain kind: ``baseline-coca`` or ``coca``, with attention biases.
        path: A ``.safetensors`` file with timm's or torchvision's names; numbers of any width.

    Raises:
        CheckpointRefused: The file is a pickle, or damaged.
        UsageError: There is no such file, or the two encoders differ in kind, width, depth or patch size.
    """
    encoder = model.image_encoder
    _check_kind(model.config)
    tensors = _read(path)
    names, table = _table_of(tensors, path)
    found: dict[str, Tensor] = {}
    unmatched = []
    for name, tensor in tensors.items():
        ours = next((re.sub(theirs, to, name) for theirs, to in table if re.fullmatch(theirs, name)), None)
        if ours is None:
            unmatched.append(name)
        else:
            found[ours] = tensor.float()
    _check_shapes(found, model.config, path)
    strange = next((name for name in unmatched if _INSIDE_A_BLOCK.match(name)), None)
    if strange:
        raise UsageError(f"{path}: {strange} changes what its blocks compute, and no block here has such a part")
    found["patch_embedding.weight"] = found["patch_embedding.weight"].flatten(1)  # (D, 3, P, P) to (D, 3 P P)
    found["positions"], left_out, there = _positions(found["positions"], encoder.side, path)
    encoder.load_state_dict(found)
    resampled = (there, encoder.side) if there != encoder.side else None
    return ImageWeightsReport(path, names, len(found), tuple(unmatched), left_out, resampled)


def _check_kind(config: ModelConfig) -> None:
    for setting, needed in _NEEDED.items():
        if getattr(config, setting) != needed:
            raise UsageError(
                f"image weights fit a plain Vision Transformer alone, and model.{setting} is "
                f"{getattr(config, setting)!r}: take variant baseline-coca or coca, with {setting} = {needed!r}"
            )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"no image weights at {path}: there is no such file")
    if path.suffix != ".safetensors":
        raise CheckpointRefused(
            f"{path}: image weights are read from .safetensors alone, since a pickle (.pt, .pth, .bin) can run code. "
            'One that you trust is converted by: python -c "import sys, torch, safetensors.torch as s; '
            's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" WEIGHTS.pth WEIGHTS.safetensors'
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointRefused(f"{path} cannot be read as safetensors: copy it again") from error


def _table_of(
    tensors: dict[str, Tensor], path: Path
) -> tuple[Literal["timm", "torchvision"], tuple[tuple[str, str], ...]]:
    if "patch_embed.proj.weight" in tensors:
        return "timm", _TIMM
    if "conv_proj.weight" in tensors:
        return "torchvision", _TORCHVISION
    raise UsageError(
        f"{path} holds no Vision Transformer with timm's or torchvision's names: "
        "it has neither patch_embed.proj.weight nor conv_proj.weight"
    )


def _check_shapes(found: dict[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Compare the encoders in what a user can set, then tensor by tensor."""
    kernel = found["patch_embedding.weight"]  # (D, C, P, P)
    if kernel.dim() != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
        raise UsageError(
            f"{path}: its patch embedding is {tuple(kernel.shape)}, not of square patches in three channels"
        )
    depth = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    for setting, there, here in (
        ("patch_size", kernel.shape[2], config.patch_size),
        ("image_width", kernel.shape[0], config.image_width),
        ("image_layers", depth, config.image_layers),
    ):
        if there != here:
            raise UsageError(f"{path} has {setting} {there}, the model has {here}: set model.{setting} = {there}")
    with torch.device("meta"):
        expected = CoCa(config).image_encoder.state_dict()
    missing = [name for name in expected if name not in found]
    if missing:
        raise UsageError(f"{path} lacks what fills image_encoder.{missing[0]}, and {len(missing) - 1} more")
    free = ("patch_embedding.weight", "positions")
    for name, tensor in found.items():
        if name not in free and tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)} there, {tuple(expected[name].shape)} here"
            raise UsageError(f"{path} does not fit at image_encoder.{name}: {shapes}")


def _positions(table: Tensor, side: int, path: Path) -> tuple[Tensor, int, int]:
    """Positions (1, n + extra, D) to (side * side, D); beside them the rows left out and the side they came with."""
    rows = table.reshape(-1, table.shape[-1])
    # No two of n, n - 1 and n - 2 are squares beyond 1: the count says how many tokens stand before the patches.
    extra = next((k for k in (0, 1, 2) if math.isqrt(len(rows) - k) ** 2 == len(rows) - k), None)
    if extra is None:
        raise UsageError(f"{path}: {len(rows)} positions are no square grid of patches, with or without a class token")
    patches = rows[extra:]
    there = math.isqrt(len(patches))
    if there != side:
        grid = patches.T.reshape(1, -1, there, there)  # (1, D, side there, side there)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        patches = grid.flatten(2)[0].T.contiguous()  # (N, D)
    return patches, extra, there
