"""Losses of policy and critic, token by token; the caller sums and divides by the global number of tokens.

Legend: B rows, T tokens. Every function returns (B, T) with 0 outside the mask, so that sums over micro-batches and
ranks are those of one large batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.objectives.kl import LARGEST


@dataclass(frozen=True)
class PolicyTerms:
    """What an update of the policy looks at, (B, T) each, 0 outside the mask."""

    loss: Tensor
    """To be descended."""
    clipped: Tensor
    """1 where the clipped branch was taken."""
    approximate_kl: Tensor
    """(log pi - log old)^2 / 2: how far the updates have moved the policy since the answers were drawn."""
    ratio: Tensor
    """pi / old."""


def clipped_policy_terms(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> PolicyTerms:
    """PPO's surrogate (Schulman et al., 2017): max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)).

    Args:
        log_probs_BT: of the drawn tokens under the policy now.
        old_log_probs_BT: of the same when they were drawn.
        advantages_BT: (B, T), or (B, 1) for one an answer.
        mask_BT: bool, tokens of the answers.
        clip: how far the ratio may fall below 1.
        clip_high: how far it may rise above; None = as far (DAPO, Yu et al., 2025, takes 0.28).
    """
    log_ratio_BT = torch.where(mask_BT, log_probs_BT - old_log_probs_BT, 0.0).clamp(-LARGEST, LARGEST)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    limited_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    with torch.no_grad():
        clipped_BT = torch.where(mask_BT, (limited_BT > plain_BT).float(), 0.0)
        moved_BT = torch.where(mask_BT, log_ratio_BT.square() / 2, 0.0)
    loss_BT = torch.where(mask_BT, torch.maximum(plain_BT, limited_BT), 0.0)
    return PolicyTerms(loss_BT, clipped_BT, moved_BT, torch.where(mask_BT, ratio_BT, 0.0).detach())


def clipped_value_terms(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), and 1 where it was clipped, (B, T) each.

    Args:
        values_BT: the critic's now.
        old_values_BT: the critic's when the answers were drawn.
        returns_BT: what it should say.
        mask_BT: bool, tokens of the answers.
        clip: how far a value may move with effect.
    """
    limited_BT = torch.clamp(values_BT, old_values_BT - clip, old_values_BT + clip)
    plain_BT, held_BT = (values_BT - returns_BT).square(), (limited_BT - returns_BT).square()
    loss_BT = torch.where(mask_BT, 0.5 * torch.maximum(plain_BT, held_BT), 0.0)
    return loss_BT, torch.where(mask_BT, (held_BT > plain_BT).float(), 0.0).detach()


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns): 1 = the critic knows, 0 = it knows nothing, below = it misleads."""
    values, returns = values_BT[mask_BT].float(), returns_BT[mask_BT].float()
    spread = returns.var(correction=0)
    return 1 - (returns - values).var(correction=0) / spread.clamp(min=1e-8)
