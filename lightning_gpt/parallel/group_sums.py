"""Sums over a group of ranks within a network: in the forward pass, or of what comes back in the backward pass.

They are the conjugate pair f and g of Shoeybi et al. (2019), section 3.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_reduce, wait_tensor


class _ReduceGradient(torch.autograd.Function):
    """The identity; its gradient is the sum (or mean) over a group."""

    @staticmethod
    def forward(ctx, x: Tensor, group: ProcessGroup, mean: bool) -> Tensor:
        ctx.group, ctx.mean = group, mean
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        total = wait_tensor(all_reduce(grad.contiguous(), "sum", ctx.group))
        return total / ctx.group.size() if ctx.mean else total, None, None


def reduce_gradient(x: Tensor, group: ProcessGroup, mean: bool = False) -> Tensor:
    """x, whose gradient is summed (or averaged) over the group: what every rank has computed a part of."""
    return _ReduceGradient.apply(x, group, mean)


class _Sum(torch.autograd.Function):
    """The sum over a group; its gradient, alike on every rank, goes back as it is."""

    @staticmethod
    def forward(ctx, x: Tensor, group: ProcessGroup) -> Tensor:
        return wait_tensor(all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def sum_over(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of every rank's x, with which all of them go on alike."""
    return _Sum.apply(x, group)
