"""The whole model: image encoder, poolers, text decoder, temperature."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.initialise import init_weights
from grrcoca_cli.model.pooler import AttentionalPooler
from grrcoca_cli.model.text import TextDecoder
from grrcoca_cli.model.vision import VisionTransformer

LOWEST_TEMPERATURE = 0.01


class CoCaOutput(NamedTuple):
    """What the losses need.

    Attributes:
        image_features, text_features: Unit vectors (B, E).
        logits: Next-token logits at the target positions alone (T, V), row after row.
        targets: The tokens to be predicted there (T,).
        memory: The captioner's image tokens (B, Q, Dm), for decoding the same pictures.
    """

    image_features: Tensor
    text_features: Tensor
    logits: Tensor
    targets: Tensor
    memory: Tensor


class CoCa(nn.Module):
    """Contrastive captioner (Yu et al., 2022) with the mechanisms that its configuration names.

    A new model has initialised weights, except on the ``meta`` device.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = VisionTransformer(config)
        width, heads = config.text_width, config.text_heads
        self.generative_pooler = (
            None
            if config.generative_pooler == "none"
            else AttentionalPooler(width, config.image_width, heads, config.pooler_queries)
        )
        contrastive_memory = width if config.generative_pooler == "cascade" else config.image_width
        self.contrastive_pooler = AttentionalPooler(width, contrastive_memory, heads, queries=1)
        self.image_projection = nn.Linear(width, config.embed_dim, bias=False)
        self.text_decoder = TextDecoder(config)
        self.text_projection = nn.Linear(width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        init_weights(self)

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures (B, 3, H, W) to the captioner's image tokens (B, Q, Dm) and unit features (B, E)."""
        encoded = self.image_encoder(images)  # (B, N, D)
        memory = encoded if self.generative_pooler is None else self.generative_pooler(encoded)
        pooled = self.contrastive_pooler(memory if self.config.generative_pooler == "cascade" else encoded)
        return memory, F.normalize(self.image_projection(pooled[:, 0]).float(), dim=-1)

    def encode_text(self, tokens: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, L), padded at the end, to unimodal states (B, L, D) and unit features (B, E)."""
        hidden, cls = self.text_decoder.encode(tokens, (tokens != pad_id).sum(dim=1))
        return hidden, F.normalize(self.text_projection(cls).float(), dim=-1)

    def forward(self, images: Tensor, tokens: Tensor, pad_id: int) -> CoCaOutput:
        """Pictures (B, 3, H, W) and their captions (B, L), begin and end token included."""
        memory, image_features = self.encode_image(images)
        hidden, text_features = self.encode_text(tokens, pad_id)
        # The one place where targets are shifted: position i predicts token i + 1.
        decoded = self.text_decoder.decode(hidden[:, :-1], memory)  # (B, L - 1, D)
        targets = tokens[:, 1:]
        real = targets != pad_id
        logits = self.text_decoder.head(decoded[real])  # (T, V)
        return CoCaOutput(image_features, text_features, logits, targets[real], memory)

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, at least `LOWEST_TEMPERATURE`."""
        return self.logit_scale.exp().reciprocal()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature at or above its floor; called after each optimiser step (Radford et al., 2021)."""
        self.logit_scale.clamp_(max=-math.log(LOWEST_TEMPERATURE))
