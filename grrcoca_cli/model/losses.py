"""The contrastive losses, CoCa's and SigLIP's, as this project defines them; captions have `linear_cross_entropy`."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Pairs(NamedTuple):
    """Unit vectors of one process's pairs, and of all pairs that they compete with.

    Attributes:
        images, texts: This process's (b, E), pair by pair.
        all_images, all_texts: Those of all processes (B, E), in the order of the processes.
        start: Index of this process's first pair among all.
    """

    images: Tensor
    texts: Tensor
    all_images: Tensor
    all_texts: Tensor
    start: int

    @classmethod
    def alone(cls, images: Tensor, texts: Tensor) -> "Pairs":
        """The pairs of a single process."""
        return cls(images, texts, images, texts, 0)


def contrastive_loss(pairs: Pairs, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al., 2021), in nats: the *mean* of image-to-text and text-to-image.

    CoCa (Yu et al., 2022, eq. 3) sums the two directions; the mean, half of that sum, is the common choice.

    Args:
        pairs: With several processes the result is this one's share; the shares add up to the loss of all pairs.
        logit_scale: Logarithm of the inverse temperature, a scalar.
    """
    labels = pairs.start + torch.arange(len(pairs.images), device=pairs.images.device)
    scale = logit_scale.exp()
    image_to_text = F.cross_entropy(scale * pairs.images @ pairs.all_texts.T, labels, reduction="sum")
    text_to_image = F.cross_entropy(scale * pairs.texts @ pairs.all_images.T, labels, reduction="sum")
    return (image_to_text + text_to_image) / (2 * max(len(pairs.all_images), 1))


def sigmoid_loss(pairs: Pairs, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Each image and text as a yes-or-no question, summed over texts, mean over images (Zhai et al., 2023).

    Computed in square blocks that are recomputed in the backward pass, so that only one is in memory at a time.

    Args:
        pairs: As for `contrastive_loss`.
        logit_scale: Logarithm of the inverse temperature, a scalar.
        logit_bias: Added to every logit, a scalar.
    """
    total = pairs.images.new_zeros(())
    width = max(len(pairs.images), 1)
    for first in range(0, len(pairs.all_texts), width):
        texts = pairs.all_texts[first : first + width]
        total = total + checkpoint(
            _sigmoid_block, pairs.images, texts, logit_scale, logit_bias, pairs.start - first, use_reentrant=False
        )
    return total / max(len(pairs.all_images), 1)


def _sigmoid_block(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, diagonal: int) -> Tensor:
    logits = logit_scale.exp() * images @ texts.T + logit_bias  # (b, block)
    # The text of image i is the one at i + diagonal, if it is in this block.
    places = torch.arange(len(images), device=images.device).unsqueeze(1) + diagonal
    is_pair = places == torch.arange(len(texts), device=images.device)
    return -F.logsigmoid(torch.where(is_pair, logits, -logits)).sum()
