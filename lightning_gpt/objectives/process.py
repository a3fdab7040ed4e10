"""Process supervision: is each step of a solution right (Uesato et al., 2022; Lightman et al., 2023)?"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
Aggregate = Literal["min", "product", "last"]


def step_losses(logits_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Binary cross-entropy at the tokens that end a step, (B, T), 0 elsewhere.

    Args:
        logits_BT: that the step is right.
        labels_BT: int64, 1 right, 0 wrong, -100 no step ends here.
    """
    has_BT = labels_BT != IGNORE_INDEX
    losses_BT = F.binary_cross_entropy_with_logits(logits_BT.float(), labels_BT.clamp(min=0).float(), reduction="none")
    return torch.where(has_BT, losses_BT, 0.0)


def solution_scores(logits_BT: Tensor, ends_BT: Tensor, aggregate: Aggregate = "product") -> Tensor:
    """One log-score a solution from its steps, (B,): what best-of-n compares.

    Args:
        logits_BT: that the step which ends here is right.
        ends_BT: bool, where steps end.
        aggregate: product = probability that all are right; min = of the worst step; last = of the last.
    """
    log_p_BT = F.logsigmoid(logits_BT.float())
    if aggregate == "product":
        return torch.where(ends_BT, log_p_BT, 0.0).sum(-1)
    if aggregate == "min":
        return torch.where(ends_BT, log_p_BT, 0.0).amin(-1)
    place_BT = torch.where(ends_BT, torch.arange(ends_BT.shape[1], device=ends_BT.device), -1)
    last_B = place_BT.amax(-1).clamp(min=0)
    return log_p_BT.gather(1, last_B[:, None])[:, 0]
