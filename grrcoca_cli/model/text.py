"""The text decoder: causal unimodal layers, then layers that also read the image."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.layers import CrossAttention, KeyValueCache, SelfAttention, make_feed_forward, make_norm
from grrcoca_cli.model.ragged import Ragged
from grrcoca_cli.model.recompute import run_layers
from grrcoca_cli.model.rope import Rope, RopeTable, RotaryGrid

ROPE_BASE = 10_000.0

KeysValues = tuple[Tensor, Tensor]


class UnimodalBlock(nn.Module):
    """Pre-norm block of causal self-attention and a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_width
        self.attention_norm = make_norm(config.text_norm, width)
        self.attention = SelfAttention(width, config.text_heads, bias=config.attention_bias, qk_norm=config.qk_norm)
        self.mlp_norm = make_norm(config.text_norm, width)
        self.mlp = make_feed_forward(config.text_mlp, width, wide=config.geglu == "wide")

    def forward(
        self, x: Tensor, rope: Rope | None, cache: KeyValueCache | None = None, ragged: Ragged | None = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D), or packed (1, T, D) if ``ragged``."""
        x = x + self.attention(self.attention_norm(x), rope, causal=True, cache=cache, ragged=ragged)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class MultimodalBlock(UnimodalBlock):
    """A unimodal block with cross-attention to the image between its two halves; still one feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.text_width
        memory_width = config.image_width if config.generative_pooler == "none" else width
        self.cross_norm = make_norm(config.text_norm, width)
        self.cross_attention = CrossAttention(
            width, memory_width, config.text_heads, bias=config.attention_bias, qk_norm=config.qk_norm
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rope: Rope | None,
        image: Tensor | KeysValues,
        cache: KeyValueCache | None = None,
        ragged: Ragged | None = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D), or packed (1, T, D) if ``ragged``.

        Args:
            x: Text states.
            rope: The rotation at their positions, if the text is rotated.
            image: Image tokens (B, Q, Dm). In decoding their keys and values, of B images, or of B / n images with n
                rows each.
            cache: Keys and values of earlier positions.
            ragged: How ``x`` is packed.
        """
        if isinstance(image, Tensor):  # here, where sharded weights are whole and checkpointing can drop the result
            image = self.cross_attention.keys_values(image)
        x = x + self.attention(self.attention_norm(x), rope, causal=True, cache=cache, ragged=ragged)
        queries = self.cross_norm(x)
        if ragged is None:
            # Rows that share an image query it together: their positions are concatenated as its queries.
            queries = queries.reshape(image[0].shape[0], -1, x.shape[-1])
        x = x + self.cross_attention(queries, image, ragged).view_as(x)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class TextDecoder(nn.Module):
    """Token ids to a text embedding and to next-token logits.

    [CLS] comes right after the last real token of its own row, at position n. No mask but the causal one is needed:
    [CLS] sees its row's tokens and no padding, no token sees [CLS], and its embedding does not depend on the length of
    the other captions in the batch. Yu et al. (2022, section 3.2) append it in the same way.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = (
            nn.Parameter(torch.empty(config.context_length, width)) if config.text_positions == "learned" else None
        )
        # One position more than the context, for [CLS].
        grid = RotaryGrid((config.context_length + 1,), width // config.text_heads, ROPE_BASE)
        self.rope = RopeTable(grid) if config.text_positions == "rope" else None
        self.cls = nn.Parameter(torch.empty(width))
        self.unimodal = nn.ModuleList(UnimodalBlock(config) for _ in range(config.unimodal_layers))
        self.cls_norm = make_norm(config.text_norm, width)
        self.multimodal = nn.ModuleList(MultimodalBlock(config) for _ in range(config.multimodal_layers))
        self.norm = make_norm(config.text_norm, width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Let the vocabulary head share the token embedding's weight, if the configuration says so."""
        if self.config.tied_embeddings:
            self.head.weight = self.token_embedding.weight

    def _rope(self, start: int, stop: int) -> Rope | None:
        return None if self.rope is None else self.rope.at(start, stop)

    def _run(self, blocks: nn.ModuleList, *inputs: Any) -> Tensor:
        return run_layers(blocks, *inputs, recompute=self.training and self.config.gradient_checkpointing)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Token ids (B, L) at positions ``start`` onwards to vectors (B, L, D)."""
        x = self.token_embedding(tokens)
        if self.positions is not None:
            x = x + self.positions[start : start + tokens.shape[1]]
        return x  # type: ignore[no-any-return]

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The unimodal half.

        Args:
            tokens: Padded at the end (B, L).
            lengths: Real tokens of each row (B,), 1 to L.

        Returns:
            Hidden states (B, L, D), valid at real tokens only, and the normalised [CLS] outputs (B, D).
        """
        x = self.embed(tokens)
        x = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1)  # (B, L + 1, D)
        is_cls = torch.arange(x.shape[1], device=x.device) == lengths.unsqueeze(1)  # (B, L + 1)
        x = torch.where(is_cls.unsqueeze(-1), self.cls.to(x.dtype), x)
        rope = self._rope(0, x.shape[1])
        ragged = Ragged(torch.arange(x.shape[1], device=x.device) <= lengths.unsqueeze(1))
        x = ragged.pack(x)
        x = self._run(self.unimodal, x, rope, None, ragged)
        return ragged.pad(x)[:, :-1], self.cls_norm(x[ragged.pack(is_cls)])

    def decode(self, hidden: Tensor, memory: Tensor, real: Tensor | None = None) -> Tensor:
        """The multimodal half.

        Args:
            hidden: Unimodal states (B, L, D).
            memory: Image tokens (B, Q, Dm).
            real: The wanted positions (B, L), each with all earlier ones of its row; None means all.

        Returns:
            Normalised states (B, L, D), or those of the T ``real`` positions, row after row (T, D).
        """
        rope = self._rope(0, hidden.shape[1])
        ragged = None if real is None else Ragged(real)
        x = hidden if ragged is None else ragged.pack(hidden)
        x = self._run(self.multimodal, x, rope, memory, None, ragged)
        return self.norm(x if ragged is None else x[0])  # type: ignore[no-any-return]

    def image_keys_values(self, memory: Tensor) -> list[KeysValues]:
        """What each multimodal layer reads of the image tokens (B, Q, Dm), for `step`."""
        blocks = cast(Iterable[MultimodalBlock], self.multimodal)
        pairs = (block.cross_attention.keys_values(memory) for block in blocks)
        # Every step reads all of them, so they are stored in the order of reading.
        return [(keys.contiguous(), values.contiguous()) for keys, values in pairs]

    def new_caches(self) -> list[KeyValueCache]:
        """Empty caches for every self-attention layer, from the first to the last."""
        return [KeyValueCache(self.config.context_length) for _ in (*self.unimodal, *self.multimodal)]

    def step(self, tokens: Tensor, caches: Sequence[KeyValueCache], image: Sequence[KeysValues]) -> Tensor:
        """Logits (R, V) for the token after ``tokens`` (R, L), which follow those that ``caches`` hold."""
        start = caches[0].length
        x = self.embed(tokens, start)
        rope = self._rope(start, start + tokens.shape[1])
        split = len(self.unimodal)
        for block, cache in zip(self.unimodal, caches[:split], strict=True):
            x = block(x, rope, cache)
        for block, cache, keys_values in zip(self.multimodal, caches[split:], image, strict=True):
            x = block(x, rope, keys_values, cache)
        return self.head(self.norm(x[:, -1]))  # type: ignore[no-any-return]
