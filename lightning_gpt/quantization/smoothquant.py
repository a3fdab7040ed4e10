"""SmoothQuant (Xiao et al., 2022, arXiv:2211.10438): outliers of the inputs are moved into the weights, so that both
can be rounded to 8 bits. Legend: N outputs, K inputs."""

import torch
from torch import Tensor


def smoothing_factors(weight_NK: Tensor, largest_K: Tensor, alpha: float, shared: Tensor | None = None) -> Tensor:
    """Factors s (K,) on the columns of W, to be taken out of the inputs: max |x|^alpha / max |w|^(1 - alpha) (eq. 4).

    Args:
        weight_NK: the matrix.
        largest_K: max |x| of each input over the calibration.
        alpha: share of the difficulty that goes into the weights; 0.5 in the paper, more where inputs are harder.
        shared: int64 (K,), inputs with the same number get the same factor.
    """
    of_weight = weight_NK.abs().amax(dim=0)
    if shared is not None:
        largest_K, of_weight = (shared_max(values, shared) for values in (largest_K, of_weight))
    factors = largest_K**alpha / of_weight.clamp(min=1e-5) ** (1 - alpha)
    return torch.where(largest_K > 0, factors.clamp(min=1e-5), 1.0)


def shared_max(values_K: Tensor, shared: Tensor) -> Tensor:
    """Each value replaced by the largest of those with the same number."""
    largest = values_K.new_zeros(int(shared.max()) + 1)
    return largest.scatter_reduce(0, shared, values_K, "amax")[shared]
