"""Pixels that are not square: what the file says of their shape, and stretching them until they are."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medical.elements import numbers, scopes
from medical.pixel_format import MAX_FRAME_PIXELS

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_ASPECT = 8.0
"""A pixel longer than this many times its width is a mistake of the header, and left as it is."""


def pixel_aspect(dataset: "Dataset", frame: int) -> float:
    """Height of a pixel over its width; 1 where the file does not say or says nonsense."""
    for scope in scopes(dataset, frame, "PixelMeasuresSequence"):
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
            pair = numbers(scope, name)
            if len(pair) == 2 and min(pair) > 0:
                return pair[0] / pair[1]
    return 1.0


def square(pixels: NDArray[np.float32], aspect: float, warnings: list[str]) -> NDArray[np.float32]:
    """Stretch (C, H, W) along the pixels' longer side until they are square; within 1 % nothing is done."""
    from PIL import Image

    rows, columns = pixels.shape[1:]
    height, width = round(rows * max(aspect, 1)), round(columns * max(1 / aspect, 1))
    if abs(aspect - 1) <= 0.01:
        return pixels
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT or height * width > MAX_FRAME_PIXELS:
        warnings.append("pixels far from square: left as they are")
        return pixels
    warnings.append("pixels were not square: resampled")
    channels = [Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in pixels]
    squared: NDArray[np.float32] = np.stack([np.asarray(channel, np.float32) for channel in channels]).clip(0, 1)
    return squared
