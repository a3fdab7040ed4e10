"""Log-probabilities of tokens and texts. Legend: B rows, T tokens, V vocabulary."""

import torch
from torch import Tensor

IGNORE_INDEX = -100


def token_log_probs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(target) in float32, (B, T); 0 where there is no target."""
    has_BT = targets_BT != IGNORE_INDEX
    logits_BTV = logits_BTV.float()
    picked_BT = logits_BTV.gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]
    return torch.where(has_BT, picked_BT - logits_BTV.logsumexp(-1), 0.0)


def sequence_log_probs(log_probs_BT: Tensor, targets_BT: Tensor, mean: bool = False) -> Tensor:
    """Sum, or mean, over the tokens that have a target, (B,)."""
    total_B = log_probs_BT.sum(-1)
    return total_B / (targets_BT != IGNORE_INDEX).sum(-1).clamp(min=1) if mean else total_B


def entropy(logits_V: Tensor) -> Tensor:
    """Of the predictive distribution, in nats: (..., V) -> (...)."""
    log_p = torch.log_softmax(logits_V.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)
