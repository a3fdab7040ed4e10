"""Causal attention on CPU in blocks of queries, each with the keys it may see: what is masked is not computed.

Legend: B batch, T tokens, D head width, H query heads, K key/value heads, G = H / K. Keys of a block: first .. end - 1.
"""

import torch
from torch import Tensor

from lightning_gpt.nn.masks import attention_mask


def block_size(tokens: int) -> int:
    """Queries of a block: smaller ones skip more of the mask, larger ones make better matrix products (measured by
    benchmarks/attention.py)."""
    return 128 if tokens <= 1024 else 256


def blocks_of(tokens: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first key, first query, end of both) of every block."""
    size = block_size(tokens)
    starts = range(0, tokens, size)
    reach = tokens if window is None else window
    return [(max(start - reach + 1, 0), start, min(start + size, tokens)) for start in starts]


RECOMPUTE_FROM = 2049
"""From this length on no weights are kept for the backward pass, which computes them again: memory grows as T then."""


def _weights(
    q: Tensor, k: Tensor, first: int, start: int, end: int, window: int | None, slopes_H: Tensor | None
) -> Tensor:
    """softmax(q k^T + mask) of one block of queries, (B K, G (end - start), end - first).

    Args:
        q: (B K, G, T, D), scaled.
        k: (B K, T, D).
        first, start, end: of blocks_of.
        window, slopes_H: as in attention_mask.
    """
    scores = q[:, :, start:end].flatten(1, 2) @ k[:, first:end].transpose(1, 2)
    # Without window and slopes only the block's own keys can be forbidden.
    masked = start if window is None and slopes_H is None else first
    position = torch.arange(first, end, device=q.device)
    mask = attention_mask(position[start - first :], position[masked - first :], q.dtype, window, slopes_H)
    heads = 1 if slopes_H is None else len(slopes_H)
    scores.view(-1, heads, end - start, end - first)[..., masked - first :] += mask
    return torch.softmax(scores, dim=-1, out=scores)


class _BlockedCausalAttention(torch.autograd.Function):
    """Forward and backward of plain_attention under the causal mask, written out.

    Autograd's own backward of slices would fill and add a whole tensor for every block of keys and values.
    """

    @staticmethod
    def forward(ctx, q_BHTD, k_BKTD, v_BKTD, scale, window, slopes_H):
        B, H, T, D = q_BHTD.shape
        K = k_BKTD.shape[1]
        # Contiguous once: a matrix product would copy each block's slice again.
        q = (q_BHTD.contiguous() * scale).view(B * K, H // K, T, D)
        k, v = k_BKTD.contiguous().view(B * K, T, D), v_BKTD.contiguous().view(B * K, T, D)
        y = torch.empty_like(q)
        kept = []
        for first, start, end in blocks_of(T, window):
            weight = _weights(q, k, first, start, end, window, slopes_H)
            y[:, :, start:end] = (weight @ v[:, first:end]).view(B * K, H // K, end - start, D)
            if T < RECOMPUTE_FROM:
                kept.append(weight)
        ctx.save_for_backward(q, k, v, slopes_H, *kept)
        ctx.scale, ctx.window = scale, window
        return y.view(B, H, T, D)

    @staticmethod
    def backward(ctx, grad_BHTD):
        q, k, v, slopes_H, *kept = ctx.saved_tensors
        B, H, T, D = grad_BHTD.shape
        grad = grad_BHTD.contiguous().view(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, (first, start, end) in enumerate(blocks_of(T, ctx.window)):
            weight = kept[index] if kept else _weights(q, k, first, start, end, ctx.window, slopes_H)
            grad_y = grad[:, :, start:end].flatten(1, 2)
            grad_weight = grad_y @ v[:, first:end].transpose(1, 2)
            grad_scores = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            grad_q[:, :, start:end] = (grad_scores @ k[:, first:end]).view(*q.shape[:2], end - start, D)
            grad_k[:, first:end] += grad_scores.transpose(1, 2) @ q[:, :, start:end].flatten(1, 2)
            grad_v[:, first:end] += weight.transpose(1, 2) @ grad_y
        grads = grad_q.mul_(ctx.scale).view(B, H, T, D), grad_k.view(B, -1, T, D), grad_v.view(B, -1, T, D)
        return *grads, None, None, None


def blocked_causal_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    window: int | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """plain_attention under the causal mask for as many queries as keys and no dropout; `mask` is implied.

    Args:
        window, slopes_H: as in attention_mask; with a window, time and memory grow as T * window.

    Returns:
        (B, H, T, D); differentiable once.
    """
    device = q_BHTD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BHTD, k_BKTD, v_BKTD = q_BHTD.to(dtype), k_BKTD.to(dtype), v_BKTD.to(dtype)
    with torch.autocast(device, enabled=False):
        return _BlockedCausalAttention.apply(q_BHTD, k_BKTD, v_BKTD, scale, window, slopes_H)
