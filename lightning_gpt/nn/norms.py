"""Normalisation layers, chosen by name. Shapes: x (..., C)."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016): (x - mean) / std, with optional gain and shift.

    Args:
        size: C.
        eps: added to the variance.
        affine: learned gain; bias: learned shift (only with affine).
    """

    def __init__(self, size: int, eps: float, affine: bool, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (size,)
        self.weight = nn.Parameter(torch.ones(size)) if affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _RMSNorm(torch.autograd.Function):
    """rms_norm written out: on CPU PyTorch has no kernel for it and takes one operation after the other."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y = x * inverse
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With n = x / rms: dx = (g - n mean(g n)) / rms, where g = grad weight; dweight = sum(grad n)."""
        x, weight, inverse = ctx.saved_tensors
        n = x * inverse
        grad_weight = None
        if weight is not None:
            grad_weight = (grad * n).flatten(0, -2).sum(0)
            grad = grad * weight
        shared = (grad * n).mean(-1, keepdim=True)
        return torch.addcmul(grad, n, shared, value=-1).mul_(inverse), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), times weight (Zhang & Sennrich, 2019, eq. 4); x (..., C), weight (C,)."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich, 2019): x / rms(x), with optional gain. Arguments as LayerNorm;
    there is never a shift."""

    def __init__(self, size: int, eps: float, affine: bool, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
