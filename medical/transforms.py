"""Random transforms for radiology training, by MONAI.

What a caption says must stay true: nothing is mirrored and nothing is turned by a right angle (31 % of ROCO captions
say left or right), and the changes are as small as a patient's posture, the detector's distance and the exposure.
"""

import math
import random
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from monai.transforms import Compose

ROTATION_DEGREES = 5.0
TRANSLATION = 0.03
"""As a fraction of the picture's edge."""
SCALE = 0.05
GAMMA = (0.8, 1.25)
WINDOW = 0.1
"""Most by which the window's width changes, and by which its centre moves, as a fraction of the width."""
NOISE = 0.01
"""Greatest standard deviation of Gaussian noise, in units of the [0, 1] range."""


def radiology_augmentation(image: Tensor, seed: int) -> Tensor:
    """A picture with its window, place, size, gamma and grain slightly changed, by `seed` alone.

    Args:
        image: (3, S, S) in [0, 1]; left as it is.
        seed: Any integer of at least 0. The same seed gives the same bits on the same machine.

    Returns:
        (3, S, S) float32 in [0, 1]; the three channels of a grey picture stay equal.
    """
    is_grey = bool(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]))
    transform = _radiology_compose(image.shape[-1]).set_random_state(seed=seed % 2**32)
    changed: Tensor = transform(jitter_window(image[:1] if is_grey else image, seed)).clamp(0, 1)
    return changed.expand(3, -1, -1).contiguous() if is_grey else changed


def jitter_window(image: Tensor, seed: int) -> Tensor:
    """Grey levels as a window a little wider or narrower, higher or lower, would have given them.

    What the window of the reading made black or white stays so: air around a patient does not turn grey.

    Args:
        image: (C, S, S) in [0, 1].
        seed: As in `radiology_augmentation`.
    """
    draw = random.Random(seed)
    width, shift = 1 + draw.uniform(-WINDOW, WINDOW), draw.uniform(-WINDOW, WINDOW)
    moved = ((image - 0.5 - shift) / width + 0.5).clamp(0, 1)
    return torch.where((image > 0) & (image < 1), moved, image)


@cache
def _radiology_compose(size: int) -> "Compose":
    """The transform for pictures with an edge of `size` pixels. MONAI takes seconds to import and waits till here."""
    from monai.transforms import Compose, EnsureType, RandAdjustContrast, RandAffine, RandGaussianNoise

    return Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(ROTATION_DEGREES),
                translate_range=(TRANSLATION * size, TRANSLATION * size),
                scale_range=(SCALE, SCALE),
                mode="bilinear",
                padding_mode="zeros",
                spatial_size=(size, size),
                cache_grid=True,
            ),
            RandAdjustContrast(prob=1.0, gamma=GAMMA),
            RandGaussianNoise(prob=1.0, std=NOISE),
            EnsureType(track_meta=False),  # a plain tensor
        ]
    )
