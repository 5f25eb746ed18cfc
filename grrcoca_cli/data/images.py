"""From pixels to the square that a model sees."""

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from grrcoca_cli.data.base import Pixels
from grrcoca_cli.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def as_pixels(image: "Image | NDArray[Any] | Tensor") -> Pixels:
    """A decoded image as pixels (C, H, W) float32 in [0, 1].

    Args:
        image: A Pillow image, or an array or tensor (H, W), (H, W, C) or (C, H, W) with C 1 or 3: uint8 or uint16
            over their full range, or floating point in [0, 1].

    Raises:
        UsageError: The type, the shape or the range is another.
    """
    if isinstance(image, Tensor):
        values = image.detach().cpu().numpy()
    elif isinstance(image, np.ndarray):
        values = image
    elif hasattr(image, "convert"):
        grey = image.mode in ("1", "L", "LA", "I;16", "I;16L", "I;16B")
        values = np.asarray(image if image.mode.startswith("I;16") else image.convert("L" if grey else "RGB"))
    else:
        raise UsageError(f"an image is a path, the bytes of a file, a Pillow image or an array, not {type(image)}")
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[0] not in (1, 3):
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or 0 in values.shape:
        raise UsageError(f"an image array of shape {values.shape}: give (H, W), (H, W, C) or (C, H, W) with C 1 or 3")
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if values.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):
        raise UsageError(f"an image array of type {values.dtype}: give uint8, uint16, or floating point in [0, 1]")
    return values.astype(np.float32)


def fit_image(pixels: Pixels | Tensor, size: int, fit: str = "letterbox") -> Tensor:
    """The picture as a model sees it in evaluation: (3, size, size) float32 in [0, 1].

    Args:
        pixels: (C, H, W) in [0, 1], C 1 or 3, of any aspect ratio.
        size: Edge of the square, in pixels.
        fit: ``letterbox`` keeps the aspect ratio and centres the picture between black bars; ``squash`` fills the
            square.

    Returns:
        The square; the three channels of a grey picture are one in memory, so clone before writing into it.
    """
    image = resize_to_fit(pixels, size, fit)
    down, right = size - image.shape[-2], size - image.shape[-1]
    image = F.pad(image, (right // 2, right - right // 2, down // 2, down - down // 2))
    return image.expand(3, size, size)


def resize_to_fit(pixels: Pixels | Tensor, size: int, fit: str) -> Tensor:
    """`fit_image` before its bars and its third channel: (C, h, w) with ``max(h, w) == size``, antialiased."""
    image = torch.as_tensor(pixels, dtype=torch.float32)
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    inner = (size, size) if fit == "squash" else (max(1, round(height * scale)), max(1, round(width * scale)))
    if inner == (height, width):
        return image
    return F.interpolate(image[None], size=inner, mode="bilinear", antialias=True)[0].clamp_(0, 1)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images - mean) / std`` by channel; ``images`` is (..., 3, H, W) in [0, 1]."""
    centre, spread = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - centre).div_(spread)


def augment_picture(image: Tensor, seed: int, *, flip: bool = False, quarter_turns: bool = False) -> Tensor:
    """A random crop of 70 to 100 % of the area at a ratio of 3/4 to 4/3, back at full size: (3, S, S) in [0, 1].

    Mirrored or turned only where asked for: captions say left and right, and lettering would turn. Depends on ``seed``
    alone.
    """
    from torchvision.transforms.v2 import functional  # seconds to import

    size = image.shape[-1]
    draw = random.Random(seed)
    area = draw.uniform(0.7, 1.0)
    ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    height, width = (min(size, max(1, round(size * (area * r) ** 0.5))) for r in (1 / ratio, ratio))
    top, left = draw.randint(0, size - height), draw.randint(0, size - width)
    crop: Tensor = functional.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    if flip and draw.random() < 0.5:
        crop = crop.flip(-1)
    if quarter_turns:
        crop = crop.rot90(draw.randrange(4), (-2, -1))
    return crop.clamp(0, 1)
