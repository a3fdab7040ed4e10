"""Newton-Schulz iteration: the orthogonal factor of a matrix by matrix products alone.

For G = U S V^T it approaches U V^T (singular values within about 0.7 to 1.2, which Muon does not mind). The quintic
coefficients are those of Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/: they make small singular
values grow fastest, at the price of not converging to exactly one.

`newton_schulz` is the method as one reads it; `newton_schulz_batched` is the fast twin.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "bf16", "fp32"]

QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
_EPS = 1e-7


def newton_schulz(matrix: Tensor, steps: int = STEPS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Orthogonalise one matrix.

    Args:
        matrix: (rows, cols), any floating type.
        steps: iterations; five bring singular values above 1e-3 of the Frobenius norm near one.
        dtype: type of the products.

    Returns:
        (rows, cols) in `dtype`.
    """
    a, b, c = QUINTIC
    tall = matrix.size(0) > matrix.size(1)
    norm = torch.linalg.vector_norm(matrix, dtype=torch.float32)
    x = matrix.to(dtype) / (norm + _EPS).to(dtype)  # no singular value above one
    x = x.T if tall else x  # the Gram matrix is then of the smaller side
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def newton_schulz_batched(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Orthogonalise (batch, rows, cols), each matrix for itself; arguments and result as `newton_schulz`."""
    a, b, c = QUINTIC
    tall = matrices.size(-2) > matrices.size(-1)
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = matrices.to(dtype) / (norm + _EPS).to(dtype)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


@functools.cache
def compiled_newton_schulz() -> Callable[[Tensor, int, torch.dtype], Tensor]:
    """`newton_schulz_batched` through torch.compile, one graph for each shape."""
    return torch.compile(newton_schulz_batched, dynamic=False)


def product_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Type of the products: bf16 is enough for Muon, but a CPU without bf16 instructions only emulates it, slowly."""
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" and not _cpu_multiplies_bf16() else "bf16"
    return torch.bfloat16 if precision == "bf16" else torch.float32


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
