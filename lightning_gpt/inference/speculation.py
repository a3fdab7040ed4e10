"""Speculative sampling: a draft proposes tokens, the network reads them all at once and keeps what leaves its own
distribution unchanged (Leviathan et al., 2023, https://arxiv.org/abs/2211.17192; Chen et al., 2023,
https://arxiv.org/abs/2302.01318).

Legend: B requests, K drafted tokens, V vocabulary, R uniform numbers for one token.

p and q are the network's and the draft's distributions after temperature, filters and penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens of one request."""

    tokens: Sequence[int] = ()
    probabilities: Tensor | None = None
    """(K, V) float32, the distributions that the tokens were drawn from; None = they were not drawn but chosen, as
    n-grams and greedy drafts are."""


def accept(p_BKV: Tensor, q_BKV: Tensor, draft_BK: Tensor, lengths_B: Tensor, uniforms_BK: Tensor) -> Tensor:
    """How many drafted tokens are kept: token x as long as u < p(x) / q(x), up to the first that is not.

    Args:
        p_BKV: probabilities of the network, before each drafted token.
        q_BKV: of the draft.
        draft_BK: int64, what it drew.
        lengths_B: int64, how many tokens each request has; those behind are padding.
        uniforms_BK: in [0, 1).

    Returns:
        (B,) int64.
    """
    p_BK = p_BKV.gather(2, draft_BK[:, :, None])[:, :, 0]
    q_BK = q_BKV.gather(2, draft_BK[:, :, None])[:, :, 0]
    kept_BK = uniforms_BK * q_BK < p_BK
    kept_BK &= torch.arange(draft_BK.shape[1], device=draft_BK.device) < lengths_B[:, None]
    return kept_BK.long().cumprod(1).sum(1)


def residual(p_BV: Tensor, q_BV: Tensor) -> Tensor:
    """max(p - q, 0), scaled to sum to 1: what replaces a rejected token. p where nothing is left (p = q, rounding)."""
    left_BV = (p_BV - q_BV).clamp_(min=0)
    total_B1 = left_BV.sum(1, keepdim=True)
    return torch.where(total_B1 > 0, left_BV / total_B1, p_BV)


def draw(p_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """(B,) int64, the ids at which the running sums of the probabilities pass uniform numbers in [0, 1)."""
    sums_BV = p_BV.double().cumsum(1)
    target_B1 = uniforms_B[:, None] * sums_BV[:, -1:]
    target_B1 = torch.minimum(target_B1, sums_BV[:, -1:] * (1 - 1e-15))
    return torch.searchsorted(sums_BV, target_B1, right=True)[:, 0]


def speculate(
    p_BLV: Tensor, q_BKV: Tensor, draft_BK: Tensor, lengths_B: Tensor, accept_BK: Tensor, draw_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Which drafted tokens are kept and the token that follows them.

    Args:
        p_BLV: (B, K + 1, V), the network's probabilities before each drafted token and after the last.
        q_BKV, draft_BK, lengths_B: see accept.
        accept_BK: uniform numbers that accept.
        draw_BL: (B, K + 1) float64, others, that draw; the one at the first rejection, or behind the draft, is used.

    Returns:
        How many are kept, (B,), and the next token, (B,): from the residual where one was rejected, else from p.
    """
    kept_B = accept(p_BLV[:, :-1], q_BKV, draft_BK, lengths_B, accept_BK)
    p_BV = p_BLV[torch.arange(len(kept_B), device=kept_B.device), kept_B]
    # Behind the draft there is no q: zeros leave p as it is.
    padded_BLV = torch.nn.functional.pad(q_BKV, (0, 0, 0, 1))
    q_BV = padded_BLV[torch.arange(len(kept_B), device=kept_B.device), kept_B]
    q_BV = q_BV * (kept_B < lengths_B)[:, None]
    uniforms_B = draw_BL.gather(1, kept_B[:, None])[:, 0]
    return kept_B, draw(residual(p_BV, q_BV), uniforms_B)


def judge(p_NV: Tensor, proposals: Sequence[Proposal], uniforms_NR: Tensor) -> list[list[int]]:
    """The tokens of each request: what is kept of its proposal and one more.

    Args:
        p_NV: of the network, for each request one row more than it has drafted tokens.
        proposals: with probabilities.
        uniforms_NR: float64, each row's own uniform numbers; the last two are used.
    """
    device, width = p_NV.device, p_NV.shape[1]
    lengths = [len(own.tokens) for own in proposals]
    longest = max(lengths)
    starts = [sum(lengths[:place]) + place for place in range(len(lengths))]
    # Behind a short draft its last row and token 0 stand: they are not looked at.
    rows = [[start + min(step, own) for step in range(longest + 1)] for start, own in zip(starts, lengths)]
    rows_BL = torch.tensor(rows, device=device)
    q_BKV = torch.zeros(len(proposals), longest, width, device=device)
    for row, own in enumerate(proposals):
        q_BKV[row, : lengths[row]] = own.probabilities[:, :width].to(device)
    draft = [[*own.tokens, *[0] * (longest - len(own.tokens))] for own in proposals]
    draft_BK, lengths_B = torch.tensor(draft, device=device), torch.tensor(lengths, device=device)
    uniforms_BLR = uniforms_NR.to(device)[rows_BL]
    accept_BK, draw_BL = uniforms_BLR[:, :-1, -2], uniforms_BLR[:, :, -1]
    kept_B, following_B = speculate(p_NV[rows_BL], q_BKV, draft_BK, lengths_B, accept_BK, draw_BL)
    answers = zip(proposals, kept_B.tolist(), following_B.tolist())
    return [[*list(own.tokens)[:kept], following] for own, kept, following in answers]
