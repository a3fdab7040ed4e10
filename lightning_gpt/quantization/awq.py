"""AWQ (Lin et al., 2023, arXiv:2306.00978): inputs that are large on average get a finer grid, by a factor that is
searched for and folded into what computes them. Legend: N outputs, K inputs, G groups of each row."""

import torch
from torch import Tensor

from lightning_gpt.nn.quantized_linear import dequantize
from lightning_gpt.quantization.grid import round_to_nearest

STEPS = 20
"""Exponents tried: 0, 1/20, ..., 19/20 (n_grid of the reference implementation)."""


def output_error(gap_NK: Tensor, hessian_KK: Tensor) -> float:
    """Sum of ||gap x||^2 over the inputs x whose x x^T sum up to the Hessian."""
    return float(((gap_NK @ hessian_KK) * gap_NK).sum())


def awq_factors(
    weight_NK: Tensor, mean_K: Tensor, hessian_KK: Tensor, bits: int, groups: int = 1, shared: Tensor | None = None
) -> tuple[Tensor, float]:
    """Factors s (K,) on the columns of W, to be taken out of the inputs, and the exponent that was best.

    s = mean |x|^a, divided by sqrt(max s * min s); a by the least ||Q(W s) (x / s) - W x||^2 over the calibration.

    Args:
        weight_NK: the matrix, as it is.
        mean_K: mean |x| of each input.
        hessian_KK: sum or mean of x x^T.
        bits, groups: of the quantization.
        shared: int64 (K,), inputs with the same number must have the same factor; None = each has its own.
    """
    mean_K = shared_mean(mean_K, shared)
    best, exponent, least = torch.ones_like(mean_K), 0.0, float("inf")
    for step in range(STEPS):
        factors = (mean_K ** (step / STEPS)).clamp(min=1e-4)
        factors = factors / (factors.max() * factors.min()).sqrt()
        values, scale = round_to_nearest(weight_NK * factors, bits, groups)
        error = output_error(dequantize(values, scale, weight_NK.dtype) / factors - weight_NK, hessian_KK)
        if error < least:
            best, exponent, least = factors, step / STEPS, error
    return best, exponent


def shared_mean(values_K: Tensor, shared: Tensor | None) -> Tensor:
    """Each value replaced by the mean of those with the same number."""
    if shared is None:
        return values_K
    count = int(shared.max()) + 1
    sums = values_K.new_zeros(count).index_add(0, shared, values_K)
    return (sums / torch.bincount(shared, minlength=count))[shared]
