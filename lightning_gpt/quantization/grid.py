"""From real numbers to whole ones and a scale: round to nearest, and how far a scale is best clipped.

Legend: N outputs, K inputs, G groups of each row, g inputs in a group.
"""

import torch
from torch import Tensor

from lightning_gpt.nn.quantized_linear import dequantize, limits

SHRINK_STEPS = 20
SMALLEST = 0.5
"""Clipping is tried at 1, 0.975, ..., 0.525 of the largest magnitude (AWQ's max_shrink=0.5, n_grid=20)."""


def largest_scale(weight_NK: Tensor, bits: int, groups: int = 1) -> Tensor:
    """Scales by which nothing is clipped: max |w| / (2^(bits - 1) - 1) of each group, (N, G).

    Rounded to bfloat16's 8 bits, so that a reader who keeps scales in the model's own type computes the same.
    """
    largest = weight_NK.unflatten(1, (groups, -1)).abs().amax(dim=-1)
    return _stored(torch.where(largest > 0, largest, 1.0) / limits(bits)[1])


def _stored(scale: Tensor) -> Tensor:
    return scale.bfloat16().to(scale.dtype).clamp_(min=torch.finfo(torch.bfloat16).tiny)


def nearest(weight_NK: Tensor, scale_NG: Tensor, bits: int) -> Tensor:
    """The whole numbers closest to weight / scale, int8 (N, K)."""
    groups = weight_NK.unflatten(1, (scale_NG.shape[1], -1))
    return (groups / scale_NG[..., None]).round_().clamp_(*limits(bits)).flatten(1).to(torch.int8)


def best_scale(weight_NK: Tensor, bits: int, groups: int = 1, hessian_KK: Tensor | None = None) -> Tensor:
    """Scales (N, G) that clip each group where its error is smallest.

    Args:
        weight_NK: the matrix.
        bits: of the whole numbers.
        groups: G.
        hessian_KK: sum of x x^T over inputs: the error is then that of the output, a group at a time (AWQ's clipping);
            None = that of the weights.
    """
    largest = largest_scale(weight_NK, bits, groups)
    best, least = largest, torch.full_like(largest, torch.inf)
    blocks_Ggg = None
    if hessian_KK is not None:
        size = weight_NK.shape[1] // groups
        blocks_Ggg = torch.stack([hessian_KK[i : i + size, i : i + size] for i in range(0, len(hessian_KK), size)])
    for step in range(SHRINK_STEPS):
        scale = _stored(largest * (1 - step / SHRINK_STEPS * (1 - SMALLEST)))
        rounded = dequantize(nearest(weight_NK, scale, bits), scale, weight_NK.dtype)
        gap = (weight_NK - rounded).unflatten(1, (groups, -1))
        if blocks_Ggg is None:
            error = gap.square().sum(-1)
        else:
            gap = gap.transpose(0, 1)  # (G, N, g)
            error = ((gap @ blocks_Ggg) * gap).sum(-1).T
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def round_to_nearest(weight_NK: Tensor, bits: int, groups: int = 1, clip: bool = False) -> tuple[Tensor, Tensor]:
    """Whole numbers (N, K) and scales (N, G): the simplest quantization there is.

    Args:
        weight_NK: float.
        bits: 8 or 4.
        groups: G.
        clip: search scales for the least squared error in place of none clipped.
    """
    scale_NG = (best_scale if clip else largest_scale)(weight_NK, bits, groups)
    return nearest(weight_NK, scale_NG, bits), scale_NG
