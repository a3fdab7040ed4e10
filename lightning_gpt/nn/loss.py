"""Cross-entropy of the output head without holding every logit. Legend: N tokens, C width, V vocabulary."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100

# Up to this many logits the plain form is as fast and small enough; above, tokens are taken in chunks.
PLAIN_MAX_LOGITS = 1 << 23
CHUNK_LOGITS = 1 << 24


def plain_linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The readable twin: all logits in float32, then cross-entropy. See linear_cross_entropy."""
    logits_NV = F.linear(hidden_NC, weight_VC)[:, :vocab_size].float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, (targets_N != IGNORE_INDEX).sum()


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of tokens: the largest tensor is chunk x V.

    The gradient of a softmax cross-entropy is known the moment its logits are (softmax - onehot), so it is taken at
    once instead of storing logits for later; three matrix products in all, as the plain form needs.
    """

    @staticmethod
    def forward(ctx, hidden_NC, weight_VC, targets_N, vocab_size, softcap, chunk, need_grad):
        compute = hidden_NC.dtype
        weight = weight_VC.to(compute)
        loss = torch.zeros((), device=hidden_NC.device)
        grad_hidden = torch.empty_like(hidden_NC) if need_grad else None
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32) if need_grad else None
        for start in range(0, len(hidden_NC), chunk):
            part = slice(start, start + chunk)
            hidden, targets = hidden_NC[part], targets_N[part]
            logits = (hidden @ weight.T)[:, :vocab_size].float()
            if softcap is not None:
                tanh = torch.tanh(logits / softcap)
                logits = softcap * tanh
            valid = targets != IGNORE_INDEX
            index = targets.clamp(min=0)[:, None]
            log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
            loss += torch.where(valid, (log_z - logits.gather(1, index))[:, 0], 0.0).sum()
            if not need_grad:
                continue
            grad = logits.sub_(log_z).exp_()
            grad.scatter_add_(1, index, torch.full_like(log_z, -1.0))
            grad *= valid[:, None]
            if softcap is not None:
                grad *= 1 - tanh.square()
            grad = grad.to(compute)
            torch.mm(grad, weight[:vocab_size], out=grad_hidden[part])
            if compute == torch.float32:
                grad_weight[:vocab_size].addmm_(grad.T, hidden)
            else:
                grad_weight[:vocab_size] += grad.T @ hidden
        # Not save_for_backward: backward scales them in place, since a second copy of V x C is what this file avoids.
        ctx.gradients = (grad_hidden, grad_weight.to(weight_VC.dtype)) if need_grad else None
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once: its gradients are scaled in place")
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None, None, None, None


def chunked_linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The memory-lean form of plain_linear_cross_entropy, `chunk` tokens at a time."""
    device = hidden_NC.device.type
    if torch.is_autocast_enabled(device):
        hidden_NC = hidden_NC.to(torch.get_autocast_dtype(device))
    chunk = chunk or max(CHUNK_LOGITS // vocab_size, 1)
    need_grad = torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad)
    with torch.autocast(device, enabled=False):
        loss = _ChunkedLinearCrossEntropy.apply(hidden_NC, weight_VC, targets_N, vocab_size, softcap, chunk, need_grad)
    return loss, (targets_N != IGNORE_INDEX).sum()


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies (nats) of softmax(hidden weight^T) against targets, and the number of targets.

    Args:
        hidden_NC: states before the head.
        weight_VC: the head's matrix, rows beyond vocab_size are padding and take no part.
        targets_N: int64, IGNORE_INDEX (-100) is skipped.
        vocab_size: V.
        softcap: logits are squashed to (-softcap, softcap) first; None = off.

    Returns:
        float32 scalar (0 when every target is skipped) and int64 scalar.
    """
    form = (
        plain_linear_cross_entropy if len(hidden_NC) * vocab_size <= PLAIN_MAX_LOGITS else chunked_linear_cross_entropy
    )
    return form(hidden_NC, weight_VC, targets_N, vocab_size, softcap)
