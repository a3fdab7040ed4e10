"""The ways to compute attention, and the choice between them.

Legend: B batch, T queries, S keys, H query heads, K key/value heads, G = H / K, D head width.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gpt.nn.blocked_attention import blocked_causal_attention
from lightning_gpt.nn.flex import BLOCK, flex_block_mask, flex_causal_attention, flex_runs_on
from lightning_gpt.nn.masks import attention_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionPath = Callable[..., Tensor]
"""(q (B, H, T, D), k (B, K, S, D), v (B, K, S, D), mask, scale, dropout) -> (B, H, T, D)."""


class CpuLimits(NamedTuple):
    """Which path is the quickest on one kind of processor, forward and backward, by the type of queries and keys
    (benchmarks/attention.py, benchmarks/decode.py). The fused kernel alone keeps no T x T weights: beyond these lengths
    memory decides too, unless a window bounds it."""

    plain_keys: dict[torch.dtype, int]
    """plain_attention up to so many keys."""
    blocked_tokens: dict[torch.dtype, range]
    """blocked_causal_attention for whole sequences of these lengths."""
    window_tokens: dict[torch.dtype, int]
    """The same beyond these lengths, for windows that leave out half of the keys or more."""
    few: AttentionPath
    """For a few new tokens: they make few scores however many keys there are."""


FEW_QUERIES = 16


class Sight(NamedTuple):
    """How queries meet keys: a path and the mask that it takes."""

    path: AttentionPath
    mask: "Tensor | BlockMask | None"
    """Additive, or blocks for FlexAttention, None when the path needs none."""


def plain_attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    record: list[Tensor] | None = None,
) -> Tensor:
    """softmax(q k^T * scale + mask) v, written out (Vaswani et al., 2017, eq. 1).

    Args:
        mask: additive, broadcastable to (B, H, T, S), -inf where forbidden; None = everything allowed.
        scale: usually 1 / sqrt(D).
        dropout: probability of dropping an attention weight.
        softcap: scores become c tanh(score / c) before the mask (Gemma 2).
        sinks_H: one more score per head, whose weight goes nowhere (gpt-oss).
        record: gets the weights (B, H, T, S), to look at.

    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    # The G query heads of one key head become G * T rows of one matrix product: keys are never copied.
    grouped = K != H
    q = (q_BHTD * scale).reshape(B, K, (H // K) * T, D) if grouped else q_BHTD * scale
    scores = (q @ k_BKSD.transpose(-2, -1)).view(B, H, T, S)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if sinks_H is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sinks = sinks_H.to(scores.dtype)[:, None, None].expand(B, H, T, 1)
        weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
    if record is not None:
        record.append(weights.detach())
    weights = F.dropout(weights, dropout) if dropout else weights
    if grouped:
        return (weights.reshape(B, K, (H // K) * T, S) @ v_BKSD).view(B, H, T, D)
    return weights @ v_BKSD


def fused_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """The same through PyTorch's scaled_dot_product_attention (FlashAttention, Dao et al., 2022, where it fits)."""
    gqa = k_BKSD.shape[1] != q_BHTD.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=gqa
    )


def folded_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """As fused_attention, with the G queries of one key head as rows of one product: keys are not copied, but the mask
    is."""
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    rows = (B, K, H // K * T)
    mask = None if mask is None else mask.expand(B, H, T, S).reshape(*rows, S)
    y = F.scaled_dot_product_attention(
        q_BHTD.reshape(*rows, D), k_BKSD, v_BKSD, attn_mask=mask, dropout_p=dropout, scale=scale
    )
    return y.view(B, H, T, D)


def fused_causal_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """As fused_attention for T = S with the causal mask implied: the kernel skips what is masked."""
    gqa = k_BKSD.shape[1] != q_BHTD.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=gqa
    )


# In bfloat16 matrix products use AVX-512's units, the fused kernel hardly (measured on AMD EPYC). It copies grouped
# keys: with it, one more token after 4,096 took 5 to 14 times as long.
WITHOUT_AMX = CpuLimits(
    plain_keys={torch.float32: 256, torch.bfloat16: 2048},
    blocked_tokens={torch.float32: range(128, 1025), torch.bfloat16: range(128, 2049)},
    window_tokens={torch.float32: 128, torch.bfloat16: 128},
    few=plain_attention,
)
# The fused kernel uses AMX in bfloat16 (measured on Intel Xeon). Products of matrices are compiled anew for every
# number of keys there, one for each new token: 1 to 30 ms.
WITH_AMX = CpuLimits(
    plain_keys={torch.float32: 256, torch.bfloat16: 896},
    blocked_tokens={torch.float32: range(192, 768), torch.bfloat16: range(0)},
    window_tokens={torch.float32: 128, torch.bfloat16: 512},
    few=folded_attention,
)


# Looked up once: torch.compile cannot look into the question.
CPU_LIMITS = WITH_AMX if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else WITHOUT_AMX


def choose_path(
    device: torch.device,
    dtype: torch.dtype,
    queries: int,
    keys: int,
    whole: bool,
    dropout: bool,
    window: int | None = None,
    biased: bool = False,
    documents: bool = False,
    softcap: bool = False,
    sinks: bool = False,
) -> AttentionPath:
    """The quickest path that serves.

    Args:
        device, dtype: of queries and keys.
        queries, keys: T and S.
        whole: the rows are causal sequences from their first token on.
        dropout: attention weights are dropped.
        window: of the layer; None = everything.
        biased: scores have a bias by distance (ALiBi).
        documents: a row holds several, and tokens see only their own.
        softcap, sinks: as in plain_attention.
    """
    special = window is not None or biased or documents or softcap
    if special and whole and not (sinks or dropout) and queries >= BLOCK and flex_runs_on(device.type):
        return flex_causal_attention
    if softcap or sinks:
        return plain_attention
    whole = whole and not documents
    limits = CPU_LIMITS
    if device.type == "cpu" and dtype in limits.plain_keys:
        if queries <= FEW_QUERIES < keys:
            return limits.few
        windowed = window is not None and queries > max(2 * window, limits.window_tokens[dtype])
        if whole and not dropout and (windowed or queries in limits.blocked_tokens[dtype]):
            return blocked_causal_attention
        if keys <= limits.plain_keys[dtype]:
            return plain_attention
    return fused_causal_attention if whole and window is None and not biased else fused_attention


def make_sight(
    path: AttentionPath,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    dtype: torch.dtype,
    window: int | None = None,
    slopes_H: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Sight:
    """A path with the mask it needs. Positions and the rest as in attention_mask; positions None = all is allowed."""
    if path is blocked_causal_attention:
        return Sight(partial(path, window=window, slopes_H=slopes_H), None)
    if path is flex_causal_attention:
        tokens, device = query_positions.shape[-1], query_positions.device
        return Sight(partial(path, slopes_H=slopes_H), flex_block_mask(tokens, window, document_ids, device))
    if path is fused_causal_attention or query_positions is None:
        return Sight(path, None)
    return Sight(path, attention_mask(query_positions, key_positions, dtype, window, slopes_H, document_ids))
