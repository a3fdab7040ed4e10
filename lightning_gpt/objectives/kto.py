"""Kahneman-Tversky optimisation (Ethayarajh et al., 2024): answers that are wanted or not, no pairs. Legend: B rows."""

import torch
from torch import Tensor


def kto_loss(
    log_ratios_B: Tensor,
    wanted_B: Tensor,
    baseline: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - s(beta (r - z))) for wanted answers, u (1 - s(beta (z - r))) for the others, (B,).

    Args:
        log_ratios_B: r, log pi - log ref of the answers.
        wanted_B: bool.
        baseline: z, scalar, from `kl_baseline`.
        beta: strength of the pull towards the reference.
        desirable_weight, undesirable_weight: w and u; choose them so that both kinds weigh alike.
    """
    gain_B = beta * (log_ratios_B.float() - baseline)
    signed_B = torch.where(wanted_B, gain_B, -gain_B)
    weight_B = torch.where(wanted_B, desirable_weight, undesirable_weight)
    return weight_B * (1 - torch.sigmoid(signed_B))


def kl_baseline(mismatched_log_ratios_B: Tensor) -> Tensor:
    """z: mean of log pi - log ref over answers to other prompts, not below zero; without gradient."""
    return mismatched_log_ratios_B.detach().float().mean().clamp(min=0)
