"""Log-probabilities of tokens and texts. Legend: B rows, T tokens, C width, V vocabulary, N tokens that are scored.

Targets are shifted already: targets[:, t] is the token after position t, -100 where nothing is scored.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gpt.nn.loss import BLOCK_LOGITS, CHUNK_LOGITS, IGNORE_INDEX, ROWS_MULTIPLE

KEPT_LOGITS = 1 << 26
"""The lean form keeps up to this many logits for its backward, in the type of the matrix product, and computes those
beyond it a second time."""


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
    return torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)


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


def _final_logits(product_RV: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """What the softmax sees, in float32, of a block of hidden weight^T."""
    logits = product_RV.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits if temperature == 1 else logits / temperature


class _HiddenLogProbs(torch.autograd.Function):
    """Chunks of tokens: the largest tensor is chunk x V, beside at most KEPT_LOGITS kept products.

    d log p(target) / d logits = onehot - softmax, so backward needs the products hidden weight^T and each row's
    normaliser (log-sum-exp). What lies between two products is done in blocks that stay in a CPU's cache.
    """

    @staticmethod
    def forward(ctx, hidden_NC, weight_VC, targets_N, vocab_size, softcap, temperature, chunk, with_entropy):
        weight = weight_VC[:vocab_size].to(hidden_NC.dtype)
        block = BLOCK_LOGITS if hidden_NC.device.type == "cpu" else CHUNK_LOGITS
        rows = max(block // vocab_size, 1)
        wide = torch.promote_types(hidden_NC.dtype, torch.float32)
        log_probs_N, normaliser_N = hidden_NC.new_empty((2, len(hidden_NC)), dtype=wide)
        entropy_N = hidden_NC.new_zeros(len(hidden_NC) if with_entropy else 0, dtype=wide)
        needed = any(ctx.needs_input_grad[:2])
        kept = []
        for start in range(0, len(hidden_NC), chunk):
            products = hidden_NC[start : start + chunk] @ weight.T
            for low in range(0, len(products), rows):
                logits = _final_logits(products[low : low + rows], softcap, temperature)
                here = slice(start + low, start + low + len(logits))
                log_p, wanted = logits.log_softmax(-1), targets_N[here, None]
                log_probs_N[here] = log_p.gather(1, wanted)[:, 0]
                normaliser_N[here] = logits.gather(1, wanted)[:, 0] - log_probs_N[here]
                if with_entropy:
                    entropy_N[here] = -torch.linalg.vecdot(log_p.exp(), log_p)
            if needed and (start + len(products)) * vocab_size <= KEPT_LOGITS:
                kept.append(products)
        ctx.save_for_backward(hidden_NC, weight_VC, targets_N, normaliser_N, *kept)
        ctx.settings = (vocab_size, softcap, temperature, chunk, rows, block)
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _):
        hidden_NC, weight_VC, targets_N, normaliser_N, *kept = ctx.saved_tensors
        vocab_size, softcap, temperature, chunk, rows, block = ctx.settings
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        weight = weight_VC[:vocab_size].to(hidden_NC.dtype)
        columns = max(block // hidden_NC.shape[1], 1)
        grad_hidden = torch.empty_like(hidden_NC) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VC, dtype=normaliser_N.dtype) if need_weight else None
        with torch.autocast(hidden_NC.device.type, enabled=False):
            for number, start in enumerate(range(0, len(hidden_NC), chunk)):
                hidden = hidden_NC[start : start + chunk]
                products = kept[number] if number < len(kept) else hidden @ weight.T
                # Kept products are not overwritten, so that the graph may be walked again.
                grad = torch.empty_like(products) if number < len(kept) else products
                for low in range(0, len(products), rows):
                    logits = _final_logits(products[low : low + rows], softcap, temperature)
                    here = slice(start + low, start + low + len(logits))
                    slope = (logits - normaliser_N[here, None]).exp_()
                    slope *= -grad_N[here, None]
                    slope.scatter_add_(1, targets_N[here, None], grad_N[here, None])
                    if softcap is not None:
                        slope *= 1 - (logits * (temperature / softcap)).square()
                    if temperature != 1:
                        slope /= temperature
                    grad[low : low + rows] = slope
                if need_hidden:
                    torch.mm(grad, weight, out=grad_hidden[start : start + chunk])
                if not need_weight:
                    continue
                for total, part in zip(grad_weight[:vocab_size].split(columns), grad.split(columns, dim=1)):
                    if total.dtype == part.dtype:
                        total.addmm_(part.T, hidden)
                    else:
                        total += part.T @ hidden
        return grad_hidden, grad_weight.to(weight_VC.dtype) if need_weight else None, *(None,) * 6


def hidden_log_probs(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets_BT: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy of the prediction, float32 (B, T) each; 0 where there is no target.

    The head is applied only where there is a target, a chunk of positions at a time, and at most KEPT_LOGITS of their
    logits wait for the backward pass, so that B T V numbers are never held.

    Args:
        hidden_BTC: states before the head; under autocast they are cast as a linear layer would.
        weight_VC: the head's matrix; rows beyond vocab_size are padding and take no part.
        targets_BT: int64, -100 = none.
        vocab_size: V.
        softcap: logits are squashed to (-softcap, softcap) first; None = off.
        temperature: logits are divided by it: the same in sampling and in every pass that scores the sample.
        chunk: positions at a time; None = by the size of the vocabulary.

    Returns:
        log-probabilities, differentiable, and entropies, not.
    """
    device = hidden_BTC.device.type
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive: it divides the logits")
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BTC.dtype
    multiple = ROWS_MULTIPLE if device == "cpu" and dtype == torch.bfloat16 else 1
    flat_targets = targets_BT.flatten()
    place_N = (flat_targets != IGNORE_INDEX).nonzero()[:, 0]
    count = len(place_N)
    rows_N = torch.cat([place_N, place_N[:1].expand(-count % multiple if count else 0)])
    hidden_NC = hidden_BTC.flatten(0, -2).index_select(0, rows_N).to(dtype)
    if chunk is None:
        chunks = max(math.ceil(len(rows_N) * vocab_size / CHUNK_LOGITS), 1)
        chunk = max(math.ceil(len(rows_N) / chunks / multiple) * multiple, 1)
    with torch.autocast(device, enabled=False):
        found = _HiddenLogProbs.apply(
            hidden_NC, weight_VC, flat_targets[rows_N], vocab_size, softcap, temperature, chunk, True
        )
    nothing = found[0].new_zeros(flat_targets.shape)
    log_probs = nothing.index_copy(0, place_N, found[0][:count])
    entropies = nothing.index_copy(0, place_N, found[1][:count])
    return log_probs.view_as(targets_BT), entropies.view_as(targets_BT)
