"""Reward models from pairs (Bradley & Terry, 1952; Ouyang et al., 2022). Legend: B pairs."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pairwise_loss(
    chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor | None = None, centering: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2, (B,).

    Args:
        chosen_B, rejected_B: rewards.
        margins_B: by how much the chosen should win (LLaMA 2, Touvron et al., 2023); None = 0.
        centering: pulls rewards to mean zero, which pairs alone leave open (Eisenstein et al., 2023: 0.01).
    """
    chosen_B, rejected_B = chosen_B.float(), rejected_B.float()
    difference_B = chosen_B - rejected_B if margins_B is None else chosen_B - rejected_B - margins_B
    return centering * (chosen_B + rejected_B).square() - F.logsigmoid(difference_B)


def accuracy(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Share of pairs whose better answer has the higher reward; a tie counts half."""
    difference_B = chosen_B - rejected_B
    return ((difference_B > 0).float() + 0.5 * (difference_B == 0).float()).mean()


def accuracy_ceiling(true_chosen_B: Tensor, true_rejected_B: Tensor) -> Tensor:
    """E[sigmoid |r_chosen - r_rejected|]: what the true rewards would reach on labels drawn by Bradley-Terry."""
    return torch.sigmoid((true_chosen_B - true_rejected_B).abs()).mean()


def calibration(difference_B: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """How often the answer that the model prefers is the better one, by how sure it is.

    Args:
        difference_B: reward of the chosen minus that of the rejected answer.
        bins: between 0.5 and 1 of predicted probability, equally wide.

    Returns:
        mean predicted probability, share that was right, count, each (bins,); NaN in empty bins.
    """
    sure_B = torch.sigmoid(difference_B.float().abs())
    right_B = (difference_B > 0).float() + 0.5 * (difference_B == 0).float()
    place_B = ((sure_B - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    count = torch.zeros(bins).index_add_(0, place_B, torch.ones_like(sure_B))
    predicted = torch.zeros(bins).index_add_(0, place_B, sure_B) / count
    return predicted, torch.zeros(bins).index_add_(0, place_B, right_B) / count, count
