"""The layers both towers are made of: norms, feed-forward layers, attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grrcoca_cli.config import MLPKind, NormKind
from grrcoca_cli.model.fused import RMSNorm, gated_product
from grrcoca_cli.model.ragged import Ragged
from grrcoca_cli.model.rope import Rope, apply_rope

NORM_EPS = 1e-6


def make_norm(kind: NormKind, width: int) -> nn.Module:
    """RMSNorm (Zhang and Sennrich, 2019), without bias, or LayerNorm, with one, over the last dimension."""
    return RMSNorm(width, eps=NORM_EPS) if kind == "rmsnorm" else nn.LayerNorm(width, eps=NORM_EPS)


class GEGLU(nn.Module):
    """Feed-forward layer gated by a GELU (Shazeer, 2020): ``down(gelu(gate(x)) * up(x))``, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        gate_up = self.gate_up(x)  # (B, N, 2 hidden)
        if torch.is_grad_enabled():
            return gated_product(gate_up, self.down.weight)
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down(F.gelu(gate).mul_(up))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Feed-forward layer with a GELU and biases: ``down(gelu(up(x)))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


def make_feed_forward(kind: MLPKind, width: int, *, wide: bool) -> nn.Module:
    """A 4D MLP, or a GEGLU of equal size (hidden 8D/3, to the nearest multiple of 8), of hidden 4D if ``wide``."""
    if kind == "gelu":
        return MLP(width, 4 * width)
    return GEGLU(width, 4 * width if wide else round(width / 3) * 8)


class KeyValueCache:
    """Keys and values of one self-attention layer, for at most ``capacity`` positions of each row.

    The first ``append`` allocates all of it, so that a decoding step writes in place.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys = self._values = torch.empty(0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions, each (R, h, L, k); returns all so far."""
        R, h, L, k = keys.shape
        if self.length == 0:
            self._keys = keys.new_empty(R, h, self.capacity, k)
            self._values = torch.empty_like(self._keys)
        stop = self.length + L
        self._keys[:, :, self.length : stop] = keys
        self._values[:, :, self.length : stop] = values
        self.length = stop
        return self._keys[:, :, :stop], self._values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keep ``rows``, in this order and as often as each is named."""
        # Copies whole rows; plain indexing would gather them number by number.
        self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries and keys are rotated *after* their projections."""

    def __init__(self, width: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.query_norm: nn.Module = make_norm("rmsnorm", width // heads) if qk_norm else nn.Identity()
        self.key_norm: nn.Module = make_norm("rmsnorm", width // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: Rope | None = None,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        ragged: Ragged | None = None,
    ) -> Tensor:
        """(B, N, D) to (B, N, D).

        With a ``cache``, ``x`` follows the positions that it holds. If ``ragged``, ``x`` is packed (1, T, D).
        """
        qkv = self.qkv(x) if ragged is None else ragged.pad(self.qkv(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, h, N, k)
        q, k = self.query_norm(q), self.key_norm(k)
        if rope is not None:
            # The copy of v frees the projection's output, whose q and k are no longer read.
            q, k, v = apply_rope(q, rope), apply_rope(k, rope), v.contiguous()
        if cache is not None:
            # Several new positions are always the first of a cache; a later one alone sees every key.
            assert cache.length == 0 or x.shape[1] == 1
            causal = causal and cache.length == 0
            k, v = cache.append(k, v)
        # A plain bool: one that depends on the length would bind an exported model to that length.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        y = y.transpose(1, 2).flatten(2)
        return self.out(y if ragged is None else ragged.pack(y))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention from a sequence to a memory, whose width may differ; nothing is rotated."""

    def __init__(self, width: int, memory_width: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(memory_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.query_norm: nn.Module = make_norm("rmsnorm", width // heads) if qk_norm else nn.Identity()
        self.key_norm: nn.Module = make_norm("rmsnorm", width // heads) if qk_norm else nn.Identity()

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory (B, Q, Dm), each (B, h, Q, k): once per image, however long the caption."""
        k, v = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.key_norm(k), v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], ragged: Ragged | None = None) -> Tensor:
        """(B, L, D), or one (1, L, D) for all memories, to (B, L, D), reading ``keys_values`` of B memories.

        If ``ragged``, ``x`` is packed (1, T, D) and so is the result.
        """
        q = self.query(x) if ragged is None else ragged.pad(self.query(x))
        q = self.query_norm(q.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # (B, h, L, k)
        q = q.expand(keys_values[0].shape[0], -1, -1, -1)
        y = F.scaled_dot_product_attention(q, *keys_values).transpose(1, 2).flatten(2)
        return self.out(y if ragged is None else ragged.pack(y))  # type: ignore[no-any-return]
