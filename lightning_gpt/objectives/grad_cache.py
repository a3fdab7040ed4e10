"""GradCache (Gao et al., 2021): the contrastive gradient of a batch that does not fit into memory, exactly.

Plain accumulation of small batches is another objective: each sees only its own negatives. Here all features are made
first, in chunks and without a graph; the loss and its gradient by the features need little memory; then each chunk is
made again, with its graph, and takes its part of that gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
"""Inputs of a chunk -> its features (n, D)."""


def cached_contrast(
    encoders: Sequence[tuple[Encode, Tensor]],
    loss: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of a loss over all pairs, with the memory of one chunk.

    The gradients of all chunks but the last are in .grad on return; `backward` of the first value adds the last one's
    and those of `parameters`. So a wrapper that synchronises in backward (DDP) does so once.

    Args:
        encoders: (network, inputs (N, ...)) of each side. What is random in them (dropout) is drawn alike both times;
            batch norms see chunks, as they would in micro-batches.
        loss: features of each side, (N, D) -> scalar; may use `parameters`.
        parameters: further leaves of the loss, such as the temperature.
        chunk_size: pairs in memory at a time.

    Returns:
        a scalar to call backward on (its own value means nothing), and the loss, detached.

    Raises:
        ValueError: chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1 pair")
    states, features = [], []
    for encode, inputs in encoders:
        made = []
        for chunk in inputs.split(chunk_size):
            states.append(_random_state(chunk.device))
            with torch.no_grad():
                made.append(encode(chunk))
        features.append(torch.cat(made).detach().requires_grad_())
    value = loss(*features)
    leaves = [*features, *parameters]
    gradients = torch.autograd.grad(value, leaves)
    learnt = [(leaf * gradient.detach()).sum() for leaf, gradient in zip(parameters, gradients[len(features) :])]
    total = sum(learnt, torch.zeros((), device=value.device))
    chunks = [
        (encode, chunk, part)
        for (encode, inputs), gradient in zip(encoders, gradients)
        for chunk, part in zip(inputs.split(chunk_size), gradient.split(chunk_size))
    ]
    # Whoever learns must be met by the last backward, where DDP synchronises: the last chunk of each side is kept.
    kept = {
        sum(len(inputs.split(chunk_size)) for _, inputs in encoders[: side + 1]) - 1 for side in range(len(encoders))
    }
    for number, ((encode, chunk, gradient), state) in enumerate(zip(chunks, states, strict=True)):
        with _replayed(state, chunk.device):
            again = encode(chunk)
        if not again.requires_grad:  # a locked tower
            continue
        surrogate = (again.float() * gradient.float()).sum()
        if number in kept:
            total = total + surrogate
        else:
            surrogate.backward()
    return total, value.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


class _replayed(AbstractContextManager):
    """Draws what was drawn from a state on; afterwards goes on where it was before."""

    def __init__(self, state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
        self.state, self.device = state, device

    def __enter__(self) -> None:
        self.before = _random_state(self.device)
        self._set(self.state)

    def __exit__(self, *about: object) -> None:
        self._set(self.before)

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)
