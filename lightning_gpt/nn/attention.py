"""Causal self-attention and the choice of its path.

Legend: B batch, T queries, S keys, C width, H query heads, K key/value heads, G = H / K, D head width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gpt.nn.blocked_attention import blocked_causal_attention
from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.positions import rotate

# Which path is the quickest on CPU, forward and backward (benchmarks/attention.py). In bfloat16 matrix products use the
# processor's matrix units, the fused kernel hardly. The fused kernel alone keeps no T x T weights: beyond these lengths
# memory decides.
CPU_PLAIN_MAX_KEYS = {torch.float32: 256, torch.bfloat16: 2048}
CPU_BLOCKED_TOKENS = {torch.float32: range(128, 1025), torch.bfloat16: range(128, 2049)}

AttentionPath = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, float], Tensor]


def plain_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """softmax(q k^T * scale + mask) v, written out (Vaswani et al., 2017, eq. 1).

    Args:
        mask: additive, broadcastable to (B, 1, T, S), -inf where forbidden; None = everything allowed.
        scale: usually 1 / sqrt(D).
        dropout: probability of dropping an attention weight.

    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    if K == H:
        scores = (q_BHTD * scale) @ k_BKSD.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        return (F.dropout(weights, dropout) if dropout else weights) @ v_BKSD
    # The G query heads of one key head become G * T rows of one matrix product: keys are never copied.
    scores = (q_BHTD * scale).reshape(B, K, (H // K) * T, D) @ k_BKSD.transpose(-2, -1)
    scores = scores.view(B, H, T, S)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights.view(B, K, (H // K) * T, S) @ v_BKSD).view(B, H, T, D)


def fused_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """The same through PyTorch's scaled_dot_product_attention (FlashAttention, Dao et al., 2022, where it fits)."""
    gqa = k_BKSD.shape[1] != q_BHTD.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=gqa
    )


def fused_causal_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """As fused_attention for T = S with the causal mask implied: the kernel skips what is masked."""
    gqa = k_BKSD.shape[1] != q_BHTD.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=gqa
    )


IMPLIES_CAUSAL = (blocked_causal_attention, fused_causal_attention)
"""Paths that need no mask and take none."""


def choose_path(
    device: torch.device, dtype: torch.dtype, queries: int, keys: int, whole: bool, dropout: bool
) -> AttentionPath:
    """The quickest path that serves.

    Args:
        device, dtype: of queries and keys.
        queries, keys: T and S.
        whole: every row is one causal sequence from its first token on.
        dropout: attention weights are dropped.
    """
    if device.type == "cpu" and whole and not dropout and queries in CPU_BLOCKED_TOKENS.get(dtype, ()):
        return blocked_causal_attention
    if device.type == "cpu" and keys <= CPU_PLAIN_MAX_KEYS.get(dtype, 0):
        return plain_attention
    return fused_causal_attention if whole else fused_attention


def causal_mask(query_positions: Tensor, keys: int, dtype: torch.dtype, document_ids: Tensor | None = None) -> Tensor:
    """Additive mask: a query sees keys at its own position and before, within its own document.

    Args:
        query_positions: (T,) or (B, T) int64 positions of the queries; keys have positions 0 .. keys - 1.
        keys: S.
        document_ids: (B, S) int64 with S = T, or None.

    Returns:
        (T, S), or (B, 1, T, S) when rows differ; 0 where allowed, -inf elsewhere.
    """
    allowed = torch.arange(keys, device=query_positions.device) <= query_positions[..., None]
    if allowed.ndim == 3:
        allowed = allowed[:, None]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -math.inf)


class CausalSelfAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention; queries, keys and values are one matrix."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.scale = 1 / math.sqrt(self.head_size)
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_size, bias=config.bias)
        self.out = nn.Linear(self.heads * self.head_size, config.n_embd, bias=config.bias)
        self.qk_norm = config.qk_norm
        self.norm_eps = config.norm_eps

    def forward(
        self,
        x_BTC: Tensor,
        path: AttentionPath,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        positions: Tensor | slice,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). What all layers share (path, mask, rotary tables) is made once by the network."""
        B, T, _ = x_BTC.shape
        qkv = self.qkv(x_BTC).view(B, T, -1, self.head_size)
        q, k, v = (part.transpose(1, 2) for part in qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2))
        if self.qk_norm:
            q, k = (F.rms_norm(part, (self.head_size,), eps=self.norm_eps) for part in (q, k))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(self.layer, k, v, positions)
            q = q.to(k.dtype)
        y_BHTD = path(q, k, v, mask, self.scale, self.dropout if self.training else 0.0)
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, self.heads * self.head_size)
        return self.out(y_BTC if cache is None else y_BTC.to(x_BTC.dtype))
