"""Logits and loss: the output head's part of memory, as nn/loss.py computes it."""

import math
from typing import NamedTuple

from lightning_gpt.nn.loss import BLOCK_LOGITS, GPU_CHUNK_LOGITS, PLAIN_MAX_LOGITS, chunk_logits
from lightning_gpt.planning.memory_job import TrainingJob


class HeadUse(NamedTuple):
    """Bytes of logits and loss."""

    held: float
    """From the end of the forward pass into the backward pass."""
    copies: float
    """Of the head's matrix under autocast, as long."""
    forward: float
    """Besides, at most, while the loss is computed."""
    backward: float
    """Besides, at most, in its backward pass, without the gradient of the head's matrix."""


def chunked(job: TrainingJob, tokens: int) -> bool:
    """Whether the loss takes tokens chunk by chunk and keeps gradients in place of logits."""
    return tokens * job.config.vocab_size > PLAIN_MAX_LOGITS


def head_use(job: TrainingJob, tokens: int, training: bool = True) -> HeadUse:
    """Of a batch of so many tokens.

    Args:
        training: whether there will be a backward pass.
    """
    config, a, w = job.config, job.bytes.compute, job.bytes.weights
    V, padded, C = config.vocab_size, config.padded_vocab_size, config.n_embd
    copies = padded * C * a if job.bytes.autocast else 0
    if not chunked(job, tokens):
        logits = tokens * V * 4
        # What the head's matrix takes, and logits in float32 (with softcap the capped ones too); targets.
        held = tokens * (C * a + 16) + logits * (1 if config.logit_softcap is None else 2)
        forward = tokens * padded * a + (logits if a == 2 or config.logit_softcap else 0)
        return HeadUse(held if training else 0, copies, forward + (0 if training else held), 2 * logits)
    chunk = math.ceil(tokens / math.ceil(tokens * V / chunk_logits(job.device)))
    block = BLOCK_LOGITS if job.device == "cpu" else GPU_CHUNK_LOGITS
    rows, columns = min(max(block // V, 1), chunk), min(max(block // C, 1), V)
    softmax = rows * V * 4 * (1 if config.logit_softcap is None else 3)
    product = columns * C * 4 if training and a == 2 else 0
    # The logits of one chunk are still there while those of the next are computed.
    together = min(2 * chunk, tokens)
    forward = copies + together * V * a + max(softmax, product) + (tokens * C * a if a != w else 0)
    if not training:
        return HeadUse(0, 0, forward, 0)
    gradients = tokens * C * a + padded * C * w
    forward += padded * C * (4 - w)  # float32 until the last chunk
    return HeadUse(gradients + tokens * 8, 0, forward, tokens * C * w)
