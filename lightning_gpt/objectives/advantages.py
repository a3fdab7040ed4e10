"""From rewards to advantages. Legend: B rows, T tokens, G answers to one prompt, N prompts."""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a small tensor over all ranks."""


def token_rewards(scores_B: Tensor, penalty_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Minus the penalty at every token, plus the score at the last one of each answer, (B, T).

    Args:
        scores_B: of the whole answers.
        penalty_BT: beta times the KL term of every token.
        mask_BT: bool, tokens of the answers; they stand together.
    """
    rewards_BT = torch.where(mask_BT, -penalty_BT, 0.0)
    T = mask_BT.shape[1]
    last_B = torch.where(mask_BT, torch.arange(T, device=mask_BT.device), -1).amax(-1)
    rows = torch.arange(len(last_B), device=mask_BT.device)
    has = last_B >= 0
    rewards_BT[rows[has], last_B[has]] += scores_B[has]
    return rewards_BT


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al., 2016): A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t.

    Args:
        rewards_BT: of every token.
        values_BT: the critic's, before each token.
        mask_BT: bool, tokens of the answers; behind an answer's end the value is 0.
        gamma: discount of rewards.
        lam: between 0 (one step, low variance) and 1 (all the rewards that came, no bias).

    Returns:
        advantages and returns (advantages + values), (B, T), 0 outside the mask.
    """
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    rewards_BT = torch.where(mask_BT, rewards_BT, 0.0)
    next_values_BT = torch.cat((values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])), dim=1)
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    advantages_BT = torch.zeros_like(deltas_BT)
    running_B = torch.zeros_like(deltas_BT[:, 0])
    for t in reversed(range(deltas_BT.shape[1])):
        running_B = torch.where(mask_BT[:, t], deltas_BT[:, t] + gamma * lam * running_B, 0.0)
        advantages_BT[:, t] = running_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True, reduce: Reduce | None = None) -> Tensor:
    """To deviation 1, and mean 0, over the valid tokens of all rows (and ranks); 0 elsewhere.

    Args:
        values_BT: what is whitened.
        mask_BT: bool, valid tokens.
        shift_mean: False keeps the mean where it was, as for rewards.
        reduce: sums the moments over ranks; None = this process is alone.
    """
    kept_BT = torch.where(mask_BT, values_BT, 0.0)
    moments = torch.stack((mask_BT.sum().double(), kept_BT.double().sum(), kept_BT.double().square().sum()))
    count, total, squares = moments if reduce is None else reduce(moments)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    white_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    white_BT = white_BT if shift_mean else white_BT + mean
    return torch.where(mask_BT, white_BT, 0.0).to(values_BT.dtype)


def group_advantages(scores_NG: Tensor, scale: bool = True) -> Tensor:
    """GRPO (Shao et al., 2024): an answer's score against those of the other answers to its prompt, (N, G).

    Args:
        scores_NG: of G answers to each of N prompts.
        scale: divide by the group's deviation; False is Dr. GRPO's (Liu et al., 2025), which does not favour
            prompts whose answers score alike.
    """
    centred_NG = scores_NG - scores_NG.mean(-1, keepdim=True)
    return centred_NG / (scores_NG.std(-1, keepdim=True) + 1e-4) if scale else centred_NG


def leave_one_out_advantages(scores_NG: Tensor) -> Tensor:
    """RLOO (Ahmadian et al., 2024): an answer's score minus the mean of the others', (N, G).

    Raises:
        ValueError: one answer a prompt has no others.
    """
    G = scores_NG.shape[-1]
    if G < 2:
        raise ValueError("leave-one-out needs at least two answers a prompt")
    return (scores_NG - scores_NG.mean(-1, keepdim=True)) * (G / (G - 1))
