"""Causal attention on CPU in blocks of queries, each with the keys up to its end: what is masked is not computed.

Legend: B batch, T tokens, D head width, H query heads, K key/value heads, G = H / K, t queries of a block,
e keys up to the block's end.
"""

import math

import torch
from torch import Tensor


def block_size(tokens: int) -> int:
    """Queries of a block: smaller ones skip more of the mask, larger ones make better matrix products (measured by
    benchmarks/attention.py)."""
    return 128 if tokens <= 1024 else 256


class _BlockedCausalAttention(torch.autograd.Function):
    """Forward and backward of plain_attention under the causal mask, written out.

    Autograd's own backward of slices would fill and add a whole tensor for every block of keys and values.
    """

    @staticmethod
    def forward(ctx, q_BHTD, k_BKTD, v_BKTD, scale):
        B, H, T, D = q_BHTD.shape
        K = k_BKTD.shape[1]
        block = block_size(T)
        # Contiguous once: a matrix product would copy each block's slice again.
        q = (q_BHTD.contiguous() * scale).view(B * K, H // K, T, D)
        k, v = k_BKTD.contiguous().view(B * K, T, D), v_BKTD.contiguous().view(B * K, T, D)
        y = torch.empty_like(q)
        future = torch.full((block, block), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        weights = []
        for start in range(0, T, block):
            end = min(start + block, T)
            scores = q[:, :, start:end].flatten(1, 2) @ k[:, :end].transpose(1, 2)
            scores_GtT = scores.view(B * K, H // K, end - start, end)
            scores_GtT[..., start:] += future[: end - start, : end - start]
            weight = torch.softmax(scores, dim=-1, out=scores)
            y[:, :, start:end] = (weight @ v[:, :end]).view(B * K, H // K, end - start, D)
            weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scale = scale
        return y.view(B, H, T, D)

    @staticmethod
    def backward(ctx, grad_BHTD):
        q, k, v, *weights = ctx.saved_tensors
        B, H, T, D = grad_BHTD.shape
        grad = grad_BHTD.contiguous().view(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        block = block_size(T)
        for index in reversed(range(len(weights))):  # the last block has every key: it begins the sums
            start, end = index * block, min((index + 1) * block, T)
            weight, grad_y = weights[index], grad[:, :, start:end].flatten(1, 2)
            grad_weight = grad_y @ v[:, :end].transpose(1, 2)
            grad_scores = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            grad_q[:, :, start:end] = (grad_scores @ k[:, :end]).view(*q.shape[:2], end - start, D)
            for total, rows, columns in (
                (grad_k, grad_scores, q[:, :, start:end].flatten(1, 2)),
                (grad_v, weight, grad_y),
            ):
                if end == T:
                    torch.bmm(rows.transpose(1, 2), columns, out=total)
                else:
                    total[:, :end] += rows.transpose(1, 2) @ columns
        return grad_q.mul_(ctx.scale).view(B, H, T, D), grad_k.view(B, -1, T, D), grad_v.view(B, -1, T, D), None


def blocked_causal_attention(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """plain_attention under the causal mask for as many queries as keys and no dropout; `mask` is implied.

    Differentiable once. Returns (B, H, T, D).
    """
    device = q_BHTD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BHTD, k_BKTD, v_BKTD = q_BHTD.to(dtype), k_BKTD.to(dtype), v_BKTD.to(dtype)
    with torch.autocast(device, enabled=False):
        return _BlockedCausalAttention.apply(q_BHTD, k_BKTD, v_BKTD, scale)
