"""Cross-entropy of the output head without holding every logit. Legend: N tokens, C width, V vocabulary."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
IGNORE_INDEX = -100

# Up to this many logits the plain form is as fast and small enough; above, tokens are taken in equal chunks of at most
# CHUNK_LOGITS (smaller ones save memory, larger ones time) and within them in blocks of BLOCK_LOGITS.
PLAIN_MAX_LOGITS = 1 << 23
CHUNK_LOGITS = 1 << 25
BLOCK_LOGITS = 1 << 21
# A GPU is slow at small products, and has room.
GPU_CHUNK_LOGITS = 1 << 27


# On CPUs a bfloat16 product is compiled anew for every number of rows, which is another in every batch.
ROWS_MULTIPLE = 64


def answered(hidden_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have a target, in order, and behind them others up to a multiple of 64.

    Returns:
        (M, C) and (M,), M <= N; the targets of the rows that fill up stay IGNORE_INDEX.
    """
    has = targets_N != IGNORE_INDEX
    wanted = has.nonzero()[:, 0]
    rows = -(-max(len(wanted), 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    if rows >= len(targets_N):
        return hidden_NC, targets_N
    chosen = torch.cat((wanted, (~has).nonzero()[: rows - len(wanted), 0]))
    return hidden_NC[chosen], targets_N[chosen]


def plain_linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, vocab_size: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The readable twin: all logits in float32, then cross-entropy. See linear_cross_entropy."""
    logits_NV = F.linear(hidden_NC, weight_VC)[:, :vocab_size].float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, (targets_N != IGNORE_INDEX).sum()


def _softmax_rows(logits_RV: Tensor, targets_R: Tensor, softcap: float | None, need_grad: bool) -> Tensor:
    """Sum of the rows' cross-entropies in float32; the logits are overwritten by their gradient, softmax - onehot."""
    capped = logits_RV if softcap is None else softcap * torch.tanh(logits_RV.float() / softcap)
    log_p = torch.log_softmax(capped, dim=-1, dtype=torch.float32)
    valid = (targets_R != IGNORE_INDEX)[:, None]
    index = targets_R.clamp(min=0)[:, None]
    loss = -torch.where(valid, log_p.gather(1, index), 0.0).sum()
    if need_grad:
        grad = log_p.exp_()
        grad.scatter_add_(1, index, torch.full_like(index, -1.0, dtype=torch.float32))
        if softcap is not None:
            grad *= 1 - (capped / softcap).square()
        torch.mul(grad, valid, out=logits_RV)
    return loss


@functools.cache
def _fused_softmax_rows() -> Callable[..., Tensor]:
    """_softmax_rows as one or two kernels in place of nine that each read and write all logits."""
    return torch.compile(_softmax_rows, dynamic=False)


def chunk_logits(device_type: str) -> int:
    """Largest number of logits that exist at a time, on a "cpu" or another device."""
    return CHUNK_LOGITS if device_type == "cpu" else GPU_CHUNK_LOGITS


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of tokens: the largest tensor is chunk x V.

    The gradient of a softmax cross-entropy is known the moment its logits are (softmax - onehot), so it takes their
    place instead of storing logits for later; three matrix products in all, as the plain form needs. What is between
    the products is done in blocks that stay in a CPU's cache.
    """

    @staticmethod
    def forward(ctx, hidden_NC, weight_VC, targets_N, vocab_size, softcap, chunk, need_grad, fused):
        weight = weight_VC[:vocab_size].to(hidden_NC.dtype)
        block = BLOCK_LOGITS if hidden_NC.device.type == "cpu" else GPU_CHUNK_LOGITS
        softmax_rows = _fused_softmax_rows() if fused else _softmax_rows
        rows, columns = max(block // vocab_size, 1), max(block // hidden_NC.shape[1], 1)
        loss = torch.zeros((), device=hidden_NC.device)
        grad_hidden = torch.empty_like(hidden_NC) if need_grad else None
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32) if need_grad else None
        for start in range(0, len(hidden_NC), chunk):
            hidden, targets = hidden_NC[start : start + chunk], targets_N[start : start + chunk]
            logits = hidden @ weight.T
            for part, wanted in zip(logits.split(rows), targets.split(rows)):
                loss += softmax_rows(part, wanted, softcap, need_grad)
            if not need_grad:
                continue
            torch.mm(logits, weight, out=grad_hidden[start : start + chunk])
            for total, part in zip(grad_weight[:vocab_size].split(columns), logits.split(columns, dim=1)):
                if total.dtype == part.dtype:
                    total.addmm_(part.T, hidden)
                else:
                    total += part.T @ hidden
        # Not save_for_backward: backward scales them in place, since a second copy of V x C is what this file avoids.
        ctx.gradients = (grad_hidden, grad_weight.to(weight_VC.dtype)) if need_grad else None
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once: its gradients are scaled in place")
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None, None, None, None, None


def _not_compiled(function: Callable[..., T]) -> Callable[..., T]:
    """torch.compiler.disable, which imports the compiler, once something is compiled: a second of every start."""
    disabled: list[Callable[..., T]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    call._torchdynamo_disable = True
    return call


# A compiler would unroll the loop and compile every chunk for itself: minutes where there are many.
@_not_compiled
def chunked_linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    vocab_size: int,
    softcap: float | None = None,
    chunk: int | None = None,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:
    """The memory-lean form of plain_linear_cross_entropy, `chunk` tokens at a time.

    Args:
        fused: compile what is between the products: worth it on a GPU.
    """
    device = hidden_NC.device.type
    if torch.is_autocast_enabled(device):
        hidden_NC = hidden_NC.to(torch.get_autocast_dtype(device))
    if chunk is None:
        chunks = math.ceil(len(hidden_NC) * vocab_size / chunk_logits(device))
        chunk = math.ceil(len(hidden_NC) / chunks)
    need_grad = torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad)
    with torch.autocast(device, enabled=False):
        loss = _ChunkedLinearCrossEntropy.apply(
            hidden_NC, weight_VC, targets_N, vocab_size, softcap, chunk, need_grad, fused
        )
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
    if len(hidden_NC) * vocab_size <= PLAIN_MAX_LOGITS:
        return plain_linear_cross_entropy(hidden_NC, weight_VC, targets_N, vocab_size, softcap)
    fused = torch.compiler.is_compiling() and hidden_NC.is_cuda
    return chunked_linear_cross_entropy(hidden_NC, weight_VC, targets_N, vocab_size, softcap, fused=fused)
