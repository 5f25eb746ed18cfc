"""CoCa's two losses, as this project defines them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al., 2021), in nats: the *mean* of image-to-text and text-to-image.

    CoCa (Yu et al., 2022, eq. 3) sums the two directions; the mean is the field's common choice and half of that.

    Args:
        image_features, text_features: Unit vectors (B, E), pair by pair.
        logit_scale: Logarithm of the inverse temperature, a scalar.
    """
    logits = logit_scale.exp() * image_features @ text_features.T  # (B, B)
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def caption_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood, in nats, of target tokens (T,) under logits (T, V).

    Divided by the count of targets of the whole global batch it is the caption loss; CoCa (eq. 4) leaves it a sum.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
