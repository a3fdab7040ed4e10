"""Reductions over a large vocabulary, fast on a CPU: in groups of neighbouring ids, and groups first.

Legend: B rows, V vocabulary, G groups, W ids in a group, K largest.

PyTorch's argmax, topk and cumsum read one number at a time; its amax, sum and exp read sixteen. So the latter go over
the vocabulary, and the former over one number for each group and then over one group. Every result of a row is the same
bit for bit whatever rows stand beside it.
"""

import torch
from torch import Tensor

W = 64
"""Ids in a group."""
BELOW_ONE = 1 - 1e-15


def groups_of(V: int) -> int:
    """How many groups V ids make; the last may be shorter."""
    return -(-V // W)


def group_maxima(x_BV: Tensor) -> Tensor:
    """(B, G), each group's largest value."""
    B, V = x_BV.shape
    whole = V // W * W
    maxima_BG = x_BV[:, :whole].view(B, -1, W).amax(2)
    return maxima_BG if whole == V else torch.cat((maxima_BG, x_BV[:, whole:].amax(1, keepdim=True)), 1)


def members(groups_BG: Tensor, V: int) -> Tensor:
    """(B, G W) ids of the groups in their order; what would lie past the last id repeats it."""
    ids_BGW = groups_BG[:, :, None] * W + torch.arange(W, device=groups_BG.device)
    return ids_BGW.flatten(1).clamp_(max=V - 1)


def largest(x_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of every row and the first id that has it, both (B,)."""
    group_B1 = group_maxima(x_BV).argmax(1, keepdim=True)
    ids_BW = members(group_B1, x_BV.shape[1])
    value_B1, place_B1 = x_BV.gather(1, ids_BW).max(1, keepdim=True)
    return value_B1[:, 0], ids_BW.gather(1, place_B1)[:, 0]


def top_values(x_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As torch.topk: (B, K) values, largest first, and their ids; which of equal ones is open.

    The K largest numbers lie in the K groups with the largest maxima.
    """
    V = x_BV.shape[1]
    if k * W * 2 >= V:
        return torch.topk(x_BV, k, 1)
    ids = members(torch.topk(group_maxima(x_BV), k, 1, sorted=False).indices, V)
    if V % W:  # an id that stands for those past the end must not be found twice
        ids = ids.sort(1).values
        pool = x_BV.gather(1, ids)
        pool[:, 1:].masked_fill_(ids[:, 1:] == ids[:, :-1], -torch.inf)
    else:
        pool = x_BV.gather(1, ids)
    values_BK, places_BK = torch.topk(pool, k, 1)
    return values_BK, ids.gather(1, places_BK)


def group_sums(w_BGW: Tensor) -> Tensor:
    """(B, G) float64, running sums over the groups; adding groups of zeros anywhere changes none of the others."""
    return w_BGW.sum(2).double().cumsum(1)


def invert(w_BGW: Tensor, sums_BG: Tensor, uniforms_B: Tensor) -> Tensor:
    """Where the running sum of the weights passes a fraction of their total: a draw in proportion to the weights.

    Args:
        w_BGW: not negative, each row with one above 0.
        sums_BG: group_sums of them.
        uniforms_B: float64 in [0, 1).

    Returns:
        (B,) places 0 ... G W - 1, never one of weight 0.
    """
    total_B1 = sums_BG[:, -1:]
    target_B1 = torch.minimum(uniforms_B[:, None] * total_B1, total_B1 * BELOW_ONE)
    group_B1 = torch.searchsorted(sums_BG, target_B1, right=True).clamp_(max=sums_BG.shape[1] - 1)
    before_B1 = torch.where(group_B1 > 0, sums_BG.gather(1, (group_B1 - 1).clamp_(min=0)), 0.0)
    inner_BW = w_BGW.gather(1, group_B1[:, :, None].expand(-1, -1, W))[:, 0].double().cumsum(1)
    last_B1 = inner_BW[:, -1:]
    target_B1 = torch.minimum((target_B1 - before_B1).clamp_(min=0), last_B1 * BELOW_ONE)
    place_B1 = torch.searchsorted(inner_BW, target_B1, right=True).clamp_(max=W - 1)
    return (group_B1 * W + place_B1)[:, 0]
