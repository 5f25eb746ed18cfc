"""Attentional poolers (Yu et al., 2022, section 3.2): learned queries that read the image tokens."""

import torch
from torch import Tensor, nn

from grrcoca_cli.model.layers import CrossAttention, make_norm


class AttentionalPooler(nn.Module):
    """One attention layer from ``queries`` learned vectors to the encoder's tokens.

    LayerNorm and no rotation in every variant, so that all variants of an ablation share it.
    """

    def __init__(self, width: int, memory_width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.query_norm = make_norm("layernorm", width)
        self.memory_norm = make_norm("layernorm", memory_width)
        self.attention = CrossAttention(width, memory_width, heads, bias=True, qk_norm=False)
        self.norm = make_norm("layernorm", width)

    def forward(self, memory: Tensor) -> Tensor:
        """Image tokens (B, N, Dm) to pooled tokens (B, Q, D)."""
        queries = self.query_norm(self.queries).unsqueeze(0)  # the same for every image, projected once
        return self.norm(self.attention(queries, self.attention.keys_values(self.memory_norm(memory))))  # type: ignore[no-any-return]
