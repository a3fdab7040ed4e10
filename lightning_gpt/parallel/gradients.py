"""Norms and clipping of gradients that may be spread over devices, each in its own way."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What this rank holds of each gradient; shares its memory."""
    grads = (parameter.grad for parameter in parameters if parameter.grad is not None)
    return [grad._local_tensor if isinstance(grad, DTensor) else grad for grad in grads]


def global_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm over all elements of all gradients, each counted once wherever it lies: float32 scalar, plain.

    Squares are summed on each rank over gradients that lie alike, then over the dimensions of the mesh along which
    these are cut; what every rank holds is counted by each for itself.
    """
    alike: dict[tuple, list[Tensor]] = defaultdict(list)
    for grad in grads:
        if isinstance(grad, DTensor):
            assert not any(placement.is_partial() for placement in grad.placements)
            cut = tuple(number for number, place in enumerate(grad.placements) if not place.is_replicate())
            alike[grad.device_mesh, cut].append(grad._local_tensor)
        else:
            alike[None, ()].append(grad)
    squares = []
    for (mesh, cut), parts in alike.items():
        square = torch.nn.utils.get_total_norm(parts).float().square()
        for dimension in cut:
            torch.distributed.all_reduce(square, group=mesh.get_group(dimension))
        squares.append(square)
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def clip_by_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scales all gradients so that their global norm is at most `limit`; None or 0 = not at all.

    Args:
        parameters: all that the norm runs over; the same on every rank.
        limit: largest norm.

    Returns:
        the norm before, a plain scalar.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(grad, DTensor) for grad in grads):
        return torch.nn.utils.clip_grad_norm_(parameters, limit) if limit else torch.nn.utils.get_total_norm(grads)
    norm = global_norm(grads)
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(local_gradients(parameters), factor)
    return norm


def clip_by_value(parameters: list[nn.Parameter], limit: float) -> None:
    """Cuts every element to -limit ... limit."""
    grads = local_gradients(parameters)
    torch._foreach_clamp_min_(grads, -limit)
    torch._foreach_clamp_max_(grads, limit)
