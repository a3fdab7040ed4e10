"""From tokens to the rows that experts work on, and back. Legend: N tokens, C width, E experts, K experts a token,
M = N K pairs of a token and an expert, S rows."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Dispatch(NamedTuple):
    """Where the pairs lie: rows of one expert together, experts in order."""

    rows_E: Tensor
    """int64, rows of each expert, empty ones included."""
    token_S: Tensor
    """int64, whose copy each row is; 0 in an empty row."""
    pair_S: Tensor
    """int64, which pair each row is; M in an empty row."""
    slot_M: Tensor
    """int64, row of each pair, pairs in the order of tokens; S = dropped."""
    drops: bool
    """Whether a pair may be dropped."""


def dispatch(expert_M: Tensor, kept_M: Tensor | None, experts: int, top_k: int, multiple: int) -> Dispatch:
    """Sorts pairs by expert.

    Args:
        expert_M: int64, K consecutive pairs a token.
        kept_M: bool, False = dropped: no expert works on it. None = all are kept.
        experts, top_k: E and K.
        multiple: each expert's rows are filled up to a multiple of this with empty ones.
    """
    wanted_M = expert_M if kept_M is None else torch.where(kept_M, expert_M, experts)  # dropped ones come last
    order = wanted_M.argsort(stable=True)
    rows_E = torch.bincount(wanted_M, minlength=experts + 1)[:experts]
    if kept_M is not None:
        order = order[: int(rows_E.sum())]
    slot, M, S = torch.arange(len(order), device=order.device), len(expert_M), len(order)
    if multiple > 1:
        empty_E = -rows_E % multiple
        slot = slot + (empty_E.cumsum(0) - empty_E)[expert_M[order]]  # behind the empty rows of the experts before
        rows_E = rows_E + empty_E
        S = int(rows_E.sum())
    return Dispatch(
        rows_E,
        order.new_zeros(S).index_copy_(0, slot, order.div(top_k, rounding_mode="floor")),
        order.new_full((S,), M).index_copy_(0, slot, order),
        order.new_full((M,), S).index_copy_(0, order, slot),
        kept_M is not None,
    )


class Spread(torch.autograd.Function):
    """Each row a copy of its token. Autograd's own backward would scatter, which on CPU takes 3 times as long."""

    @staticmethod
    def forward(ctx, x_NC: Tensor, plan: Dispatch) -> Tensor:
        """(N, C) -> (S, C)."""
        ctx.plan, ctx.tokens = plan, len(x_NC)
        return x_NC.index_select(0, plan.token_S)

    @staticmethod
    def backward(ctx, grad_SC: Tensor) -> tuple[Tensor, None]:
        """Each token the sum of its rows."""
        grad_SC = _with_zeros(grad_SC) if ctx.plan.drops else grad_SC
        return F.embedding_bag(ctx.plan.slot_M.view(ctx.tokens, -1), grad_SC, mode="sum"), None


class Collect(torch.autograd.Function):
    """Each token the sum of its rows, weighted by the gates."""

    @staticmethod
    def forward(ctx, y_SC: Tensor, gate_NK: Tensor, plan: Dispatch) -> Tensor:
        """(S, C), (N, K) -> (N, C)."""
        ctx.plan = plan
        ctx.save_for_backward(y_SC, gate_NK)
        y_SC, gate_NK = _with_zeros(y_SC) if plan.drops else y_SC, gate_NK.to(y_SC.dtype)
        return F.embedding_bag(plan.slot_M.view(gate_NK.shape), y_SC, mode="sum", per_sample_weights=gate_NK)

    @staticmethod
    def backward(ctx, grad_NC: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of a row its token's, weighted; of a gate what the row and its token's gradient have in common."""
        y_SC, gate_NK = ctx.saved_tensors
        grad_SC = grad_NC.index_select(0, ctx.plan.token_S)
        grad_gate_S = (grad_SC * y_SC).sum(-1, dtype=gate_NK.dtype)
        gate_S = _with_zeros(gate_NK.flatten())[ctx.plan.pair_S].to(y_SC.dtype)
        return grad_SC.mul_(gate_S[:, None]), _with_zeros(grad_gate_S)[ctx.plan.slot_M].view(gate_NK.shape), None


def _with_zeros(rows: Tensor) -> Tensor:
    """A row of zeros at the end, for pairs without a row and rows without a pair."""
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, 1))
