"""The whole model: image encoder, poolers, text decoder, temperature."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.initialise import init_weights
from grrcoca_cli.model.linear_cross_entropy import TokenStatistics, linear_cross_entropy, token_statistics
from grrcoca_cli.model.losses import Pairs, contrastive_loss, sigmoid_loss
from grrcoca_cli.model.pooler import AttentionalPooler
from grrcoca_cli.model.precision import at_least_float32
from grrcoca_cli.model.text import TextDecoder
from grrcoca_cli.model.vision import VisionTransformer

LOWEST_TEMPERATURE = 0.01


class CoCaOutput(NamedTuple):
    """What the losses need.

    Attributes:
        image_features, text_features: Unit vectors (B, E).
        memory: The captioner's image tokens (B, Q, Dm), for decoding the same images.
        nll: Summed negative log-likelihood of the target tokens in nats, a scalar; None if only features were wanted.
            Divided by the target count of the whole global batch it is the caption loss; CoCa (eq. 4) keeps the sum.
        tokens: The same for each token, if wanted.
    """

    image_features: Tensor
    text_features: Tensor
    memory: Tensor
    nll: Tensor | None = None
    tokens: TokenStatistics | None = None


class CoCa(nn.Module):
    """Contrastive captioner (Yu et al., 2022) with the mechanisms that its configuration names.

    A new model is initialised, except on the ``meta`` device.
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
        self.logit_bias = nn.Parameter(torch.empty(())) if config.contrastive_loss == "sigmoid" else None
        init_weights(self, config)

    @property
    def blocks(self) -> list[nn.Module]:
        """Every transformer layer: the unit of recomputation, compilation and sharding."""
        decoder = self.text_decoder
        return [*self.image_encoder.blocks, *decoder.unimodal, *decoder.multimodal]

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to the captioner's image tokens (B, Q, Dm) and unit features (B, E)."""
        encoded = self.image_encoder(images)  # (B, N, D)
        memory = encoded if self.generative_pooler is None else self.generative_pooler(encoded)
        pooled = self.contrastive_pooler(memory if self.config.generative_pooler == "cascade" else encoded)
        return memory, F.normalize(_widen(self.image_projection(pooled[:, 0])), dim=-1)

    def encode_text(self, tokens: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, L), padded at the end, to unimodal states (B, L, D) and unit features (B, E)."""
        hidden, cls = self.text_decoder.encode(tokens, (tokens != pad_id).sum(dim=1))
        return hidden, F.normalize(_widen(self.text_projection(cls)), dim=-1)

    def predict(self, hidden: Tensor, tokens: Tensor, memory: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """States (T, D) for the vocabulary head and the tokens (T,) to predict from them, row after row.

        Args:
            hidden: Unimodal states (B, L, D) of ``tokens``.
            tokens: Ids (B, L), padded at the end.
            memory: The captioner's image tokens (B, Q, Dm).
            pad_id: The padding's id.
        """
        # Targets are shifted only here: position i predicts token i + 1.
        targets = tokens[:, 1:]
        real = targets != pad_id
        return self.text_decoder.decode(hidden[:, :-1], memory, real), targets[real]

    def forward(
        self, images: Tensor, tokens: Tensor, pad_id: int, want: Literal["features", "loss", "tokens"] = "loss"
    ) -> CoCaOutput:
        """Images (B, 3, H, W) and their captions (B, L), begin and end token included.

        ``want``: only the contrastive features; also the caption loss; or also that loss for each token.
        """
        memory, image_features = self.encode_image(images)
        hidden, text_features = self.encode_text(tokens, pad_id)
        output = CoCaOutput(image_features, text_features, memory)
        if want == "features":
            return output
        states, targets = self.predict(hidden, tokens, memory, pad_id)
        weight = self.text_decoder.head.weight
        if want == "loss":
            return output._replace(nll=linear_cross_entropy(states, weight, targets))
        statistics = token_statistics(states, weight, targets)
        return output._replace(nll=statistics.nll.sum(), tokens=statistics)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """The contrastive loss that the configuration names, over one process's pairs."""
        if self.logit_bias is None:
            return contrastive_loss(pairs, self.logit_scale)
        return sigmoid_loss(pairs, self.logit_scale, self.logit_bias)

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, at least `LOWEST_TEMPERATURE`."""
        return self.logit_scale.exp().reciprocal()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature at or above its floor; called after each optimiser step (Radford et al., 2021)."""
        self.logit_scale.clamp_(max=-math.log(LOWEST_TEMPERATURE))


def _widen(x: Tensor) -> Tensor:
    return x.to(at_least_float32(x.dtype))
