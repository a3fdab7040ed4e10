"""Causal self-attention.

Legend: B batch, T queries, S keys, C width, H query heads, K key/value heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gpt.nn.attention_paths import Sight
from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.norms import rms_norm
from lightning_gpt.nn.paged_cache import PagedStep
from lightning_gpt.nn.positions import rotate


@dataclass(frozen=True)
class Pass:
    """What the layers of one forward pass share; the network makes it."""

    sights: dict[int | None, Sight]
    """By the layer's window: how its queries meet its keys."""
    rotary: tuple[Tensor, Tensor] | None
    """cos and sin at the tokens' positions."""
    cache: KVCache | PagedStep | None
    positions: Tensor | slice
    slopes_H: Tensor | None = None
    """ALiBi's, for a PagedStep; sights have them in their masks."""


class CausalSelfAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention; queries, keys and values are one matrix."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.scale, self.softcap, self.dropout = config.score_scale, config.attention_softcap, config.dropout
        self.window = config.windows[layer]
        rows = (self.heads + 2 * self.kv_heads) * self.head_size
        self.qkv = nn.Linear(config.n_embd, rows, bias=config.has_qkv_bias)
        self.out = nn.Linear(self.heads * self.head_size, config.n_embd, bias=config.bias)
        self.qk_norm, self.norm_eps = config.qk_norm, config.norm_eps
        self.q_gain = self.k_gain = self.sinks = self.value_mix = None
        if config.qk_norm_affine:
            self.q_gain, self.k_gain = (nn.Parameter(torch.ones(self.head_size)) for _ in range(2))
        if config.attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(self.heads))
        if config.value_skip and layer:
            self.value_mix = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_BTC: Tensor, shared: Pass, first_value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and this layer's values (B, K, T, D).

        Args:
            x_BTC: the normalised stream.
            shared: of this forward pass.
            first_value: the first layer's values, where value_skip mixes them in.
        """
        B, T, _ = x_BTC.shape
        qkv = self.qkv(x_BTC).view(B, T, -1, self.head_size)
        q, k, v = (part.transpose(1, 2) for part in qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2))
        if self.value_mix is not None:
            v = torch.lerp(v, first_value, self.value_mix.to(v.dtype))
        value = v
        if self.qk_norm:
            q, k = rms_norm(q, self.q_gain, self.norm_eps), rms_norm(k, self.k_gain, self.norm_eps)
        if shared.rotary is not None:
            q, k = rotate(q, *shared.rotary), rotate(k, *shared.rotary)
        if isinstance(shared.cache, PagedStep):
            extras = self.scale, self.window, shared.slopes_H, self.softcap, self.sinks
            y_BHTD = shared.cache.attend(self.layer, q, k, v, *extras)
        else:
            y_BHTD = self._attend(q, k, v, shared)
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, self.heads * self.head_size)
        return self.out(y_BTC if shared.cache is None else y_BTC.to(x_BTC.dtype)), value

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shared: Pass) -> Tensor:
        """Queries to the keys and values of this pass and of the cache, by the path that was chosen for it."""
        if shared.cache is not None:
            k, v = shared.cache.update(self.layer, k, v, shared.positions)
            q = q.to(k.dtype)
        path, mask = shared.sights[self.window]
        dropout = self.dropout if self.training else 0.0
        if self.softcap is None and self.sinks is None:
            return path(q, k, v, mask, self.scale, dropout)
        return path(q, k, v, mask, self.scale, dropout, softcap=self.softcap, sinks_H=self.sinks)
