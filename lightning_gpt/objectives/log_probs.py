"""Log-probabilities of tokens and texts. Legend: B rows, T tokens, C width, V vocabulary, N positions."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
# Logits of at most so many numbers are held at a time; their gradient is computed from the states again.
CHUNK_LOGITS = 1 << 22
# On CPUs a bfloat16 product is compiled anew for every number of rows, which is another in every batch.
ROWS_MULTIPLE = 64


def token_log_probs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(target) in float32, (B, T); 0 where there is no target (-100).

    Logits are made float32 first: log_softmax in bfloat16 is off by up to 0.2 a token.
    """
    has_BT = targets_BT != IGNORE_INDEX
    logits_BTV = logits_BTV.float()
    picked_BT = logits_BTV.gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]
    return torch.where(has_BT, picked_BT - logits_BTV.logsumexp(-1), 0.0)


def sequence_log_probs(log_probs_BT: Tensor, targets_BT: Tensor, mean: bool = False) -> Tensor:
    """Sum, or mean, over the tokens that have a target, (B,)."""
    total_B = log_probs_BT.sum(-1)
    return total_B / (targets_BT != IGNORE_INDEX).sum(-1).clamp(min=1) if mean else total_B


def entropy(logits: Tensor) -> Tensor:
    """Of the predictive distribution in nats, (..., V) -> (...)."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def plain_hidden_log_probs(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets_BT: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The readable twin of hidden_log_probs: all logits at once."""
    logits_BTV = F.linear(hidden_BTC, weight_VC)[..., :vocab_size].float()
    if softcap is not None:
        logits_BTV = softcap * torch.tanh(logits_BTV / softcap)
    logits_BTV = logits_BTV / temperature
    has_BT = targets_BT != IGNORE_INDEX
    return token_log_probs(logits_BTV, targets_BT), torch.where(has_BT, entropy(logits_BTV.detach()), 0.0)


def _rows(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, softcap: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_NV = F.linear(hidden_NC, weight_VC)[:, :vocab_size].float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    if temperature != 1:
        logits_NV = logits_NV / temperature
    total_N = logits_NV.logsumexp(-1)
    with torch.no_grad():  # sum p (total - logit) = total - sum p logit
        entropy_N = total_N - (torch.exp(logits_NV - total_N[:, None]) * logits_NV).sum(-1)
    return logits_NV.gather(1, targets_N.clamp(min=0)[:, None])[:, 0] - total_N, entropy_N


def hidden_log_probs(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets_BT: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy of the prediction, float32 (B, T) each; 0 where there is no target.

    The head is applied only where there is a target, some positions at a time; their logits are not kept for the
    backward pass but computed again, so that B T V numbers are never held.

    Args:
        hidden_BTC: states before the head.
        weight_VC: the head's matrix; rows beyond vocab_size are padding and take no part.
        targets_BT: int64, -100 = none.
        vocab_size: V.
        softcap: logits are squashed to (-softcap, softcap) first; None = off.
        temperature: logits are divided by it: the same in sampling and in every pass that scores the sample.

    Returns:
        log-probabilities, differentiable, and entropies, not.
    """
    device = hidden_BTC.device
    wanted = (targets_BT.flatten() != IGNORE_INDEX).nonzero()[:, 0]
    filled = -(-max(len(wanted), 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE - len(wanted)
    places = torch.cat((wanted, wanted.new_zeros(filled)))
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1)[places], targets_BT.flatten()[places]
    chunk = max(CHUNK_LOGITS // vocab_size // ROWS_MULTIPLE, 1) * ROWS_MULTIPLE
    parts = []
    for hidden, targets in zip(hidden_NC.split(chunk), targets_N.split(chunk)):
        arguments = (hidden, weight_VC, targets, vocab_size, softcap, temperature)
        once = len(hidden_NC) <= chunk or not torch.is_grad_enabled()
        parts.append(_rows(*arguments) if once else checkpoint(_rows, *arguments, use_reentrant=False))
    log_probs_N, entropy_N = (torch.cat(both)[: len(wanted)] for both in zip(*parts))
    empty = torch.zeros(targets_BT.numel(), device=device)
    shape = targets_BT.shape
    return empty.index_put((wanted,), log_probs_N).view(shape), empty.index_put((wanted,), entropy_N).view(shape)
