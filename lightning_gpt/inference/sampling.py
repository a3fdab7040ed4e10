"""From logits to tokens: pure functions. Legend: B rows, V vocabulary.

Each filter sets what it forbids to -inf and is a no-op at its neutral value; the order is transformers': repetition
penalty, temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 1.0
    """Logits are divided by it: below 1 is more careful, above 1 more daring, 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep the k likeliest tokens; null = all."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens whose probabilities reach p (nucleus, Holtzman et al., 2019)."""
    min_p: float | None = None
    """Keep tokens at least this fraction as likely as the likeliest (Nguyen et al., 2024)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that occurred before less likely (Keskar et al., 2019)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or positive")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or null to switch it off")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be in [0, 1]")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be positive; 1 switches it off")


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of tokens that occurred.

    Args:
        seen_BV: bool, which tokens occurred in the row.
        penalty: above 1 discourages.
    """
    penalized = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Forbids all but the k largest logits (ties with the k-th stay)."""
    threshold = torch.topk(logits_BV, min(k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < threshold, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Forbids what lies outside the smallest set of likeliest tokens with probability p; one token always stays."""
    ascending, order = torch.sort(logits_BV, dim=-1)
    outside = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p
    outside[:, -1] = False
    return logits_BV.masked_fill(outside.scatter(1, order, outside), -math.inf)


def keep_min_p(logits_BV: Tensor, fraction: float) -> Tensor:
    """Forbids tokens less likely than `fraction` times the likeliest."""
    if fraction == 0:
        return logits_BV
    threshold = logits_BV.amax(dim=-1, keepdim=True) + math.log(fraction)
    return logits_BV.masked_fill(logits_BV < threshold, -math.inf)


def process_logits(logits_BV: Tensor, config: SamplingConfig, seen_BV: Tensor | None = None) -> Tensor:
    """All filters of the configuration in their order; at temperature 0 only the repetition penalty matters."""
    if config.repetition_penalty != 1.0 and seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits_BV
    if config.temperature != 1.0:
        logits_BV = logits_BV / config.temperature
    if config.top_k is not None:
        logits_BV = keep_top_k(logits_BV, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        logits_BV = keep_top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = keep_min_p(logits_BV, config.min_p)
    return logits_BV


def sample(
    logits_BV: Tensor,
    config: SamplingConfig,
    generator: Generator | Sequence[Generator] | None = None,
    seen_BV: Tensor | None = None,
) -> Tensor:
    """One token per row.

    A draw from softmax(logits) is the argmax of probability / exponential noise (the exponential race).

    Args:
        logits_BV: any floating type.
        config: temperature and filters.
        generator: on the logits' device; one for the batch, or one per row, which makes a row's tokens independent of
            the rows beside it; None = torch's global one.
        seen_BV: bool, tokens that occurred, for the repetition penalty.

    Returns:
        (B,) int64.
    """
    logits_BV = process_logits(logits_BV.float(), config, seen_BV)
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    noise = torch.empty_like(logits_BV)
    if generator is None or isinstance(generator, Generator):
        noise.exponential_(generator=generator)
    else:
        for row, own in zip(noise, generator, strict=True):
            row.exponential_(generator=own)
    return torch.softmax(logits_BV, dim=-1).div_(noise).argmax(dim=-1)
