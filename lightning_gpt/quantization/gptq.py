"""GPTQ (Frantar et al., 2023, arXiv:2210.17323): columns are rounded one after the other, and what a rounding does to
the output is made good by the columns that are left. Legend: N outputs, K inputs, G groups of each row."""

import torch
from torch import Tensor

from lightning_gpt.nn.quantized_linear import dequantize
from lightning_gpt.quantization.grid import best_scale, largest_scale, nearest

BLOCK = 128
"""Columns whose corrections are gathered before they go into the rest of the matrix (algorithm 1: B)."""


def gptq(
    weight_NK: Tensor,
    hessian_KK: Tensor,
    bits: int,
    groups: int = 1,
    damping: float = 0.01,
    clip: bool = False,
    act_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Whole numbers (N, K) and scales (N, G).

    Args:
        weight_NK: float32 or float64.
        hessian_KK: sum or mean of x x^T over the layer's inputs; its size does not matter.
        bits: 8 or 4.
        groups: G; the scales of a group are taken from its columns as corrected so far.
        damping: added to the Hessian's diagonal, as a share of its mean; ten times as much while it has no inverse.
        clip: scales of the least squared error.
        act_order: columns of large inputs first. Scales are then those of the uncorrected matrix, so that groups stay
            in place and every format can hold them.

    Raises:
        ValueError: a Hessian that is not finite, or no damping makes it invertible.
    """
    N, K = weight_NK.shape
    size = K // groups
    to_scale = best_scale if clip else largest_scale
    weight, hessian = weight_NK.clone(), hessian_KK.to(weight_NK.dtype).clone()
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian is not finite: an input of the layer is NaN or too large")
    dead = hessian.diagonal() == 0  # inputs that are always zero: any value will do, 0 costs no scale
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    order = torch.arange(K)
    scale_NG = weight.new_ones(N, groups)
    if act_order:
        scale_NG = to_scale(weight, bits, groups)
        order = hessian.diagonal().argsort(descending=True)
        weight, hessian = weight[:, order], hessian[order][:, order]
    upper = _inverse_factor(hessian, damping)
    values = torch.empty(N, K, dtype=torch.int8)
    # A group's scale needs its columns corrected by all before it, so no group reaches over a block's end.
    block = BLOCK if groups == 1 or act_order else size * max(1, BLOCK // size)
    group_of = (order // size).tolist()
    for start in range(0, K, block):
        end = min(start + block, K)
        errors = weight.new_empty(N, end - start)
        for j in range(start, end):
            group = group_of[j]
            if not act_order and j % size == 0:
                scale_NG[:, group] = to_scale(weight[:, j : j + size], bits)[:, 0]
            column, scale = weight[:, j : j + 1], scale_NG[:, group : group + 1]
            values[:, j : j + 1] = nearest(column, scale, bits)
            error = (column - dequantize(values[:, j : j + 1], scale, weight.dtype)) / upper[j, j]
            weight[:, j:end] -= error * upper[j, j:end]
            errors[:, j - start] = error[:, 0]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return values[:, order.argsort()], scale_NG


def _inverse_factor(hessian_KK: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse: its row j, over its diagonal, spreads column j's error over those after it
    (step 3 of section 3.3)."""
    identity = torch.eye(len(hessian_KK), dtype=hessian_KK.dtype)
    mean = hessian_KK.diagonal().mean()
    share = damping
    while share < 10:
        lower, failed = torch.linalg.cholesky_ex(hessian_KK + share * mean * identity)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
        share = max(share, 1e-4) * 10
    raise ValueError(f"damping={damping} and ten times as much did not make the Hessian invertible: give more text")
