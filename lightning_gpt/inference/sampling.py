"""From logits to tokens: pure functions. Legend: B rows, V vocabulary.

Each filter sets what it forbids to -inf and is a no-op at its neutral value; the order is transformers': bias,
penalties, temperature, top-k, top-p, min-p. batch_sampler.py does the same for many requests at once, fast; this is its
readable twin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """Above 1 makes tokens that occurred before, in the prompt too, less likely (Keskar et al., 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that were generated before (OpenAI's definition); -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as often as it was generated before (OpenAI's definition); -2 to 2."""
    logit_bias: dict[int, float] | None = field(default=None, hash=False)
    """Added to the logits of these token ids before all else; -100 in effect forbids, 100 in effect forces."""

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
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name}={getattr(self, name)} must be from -2 to 2; 0 switches it off")
        for index, bias in (self.logit_bias or {}).items():
            if not isinstance(index, int) or index < 0:
                raise ValueError(f"logit_bias has the token id {index!r}, which must be a whole number from 0 on")
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {index} is {bias}, which must be from -100 to 100")

    @property
    def counts_generated(self) -> bool:
        """Whether what was generated before matters by how often."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of tokens that occurred.

    Args:
        seen_BV: bool, which tokens occurred in the row.
        penalty: above 1 discourages.
    """
    penalized = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def penalize_counts(logits_BV: Tensor, counts_BV: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtracts presence for every token that was generated, and frequency as often as it was.

    Args:
        counts_BV: how often each token was generated in the row, not counting the prompt.
    """
    return logits_BV - frequency * counts_BV - presence * (counts_BV > 0)


def add_bias(logits_BV: Tensor, bias: dict[int, float]) -> Tensor:
    """Adds to the logits of some ids.

    Raises:
        ValueError: an id beyond the vocabulary.
    """
    if (largest := max(bias, default=0)) >= logits_BV.shape[1]:
        raise ValueError(f"logit_bias has token {largest}, which is outside the vocabulary of {logits_BV.shape[1]}")
    ids = torch.tensor(list(bias), dtype=torch.int64, device=logits_BV.device)
    values = torch.tensor(list(bias.values()), dtype=logits_BV.dtype, device=logits_BV.device)
    return logits_BV.index_add(1, ids, values.expand(len(logits_BV), -1))


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Forbids all but the k largest logits (ties with the k-th stay)."""
    threshold = torch.topk(logits_BV, min(k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < threshold, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Forbids what lies outside the smallest set of likeliest tokens with probability p; one token always stays.

    Ties with the last token of the set stay, so that no token is preferred for its id.
    """
    ascending, _ = torch.sort(logits_BV, dim=-1)
    outside = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p
    outside[:, -1] = False
    threshold = ascending.masked_fill(outside, math.inf).amin(dim=-1, keepdim=True)
    return logits_BV.masked_fill(logits_BV < threshold, -math.inf)


def keep_min_p(logits_BV: Tensor, fraction: float) -> Tensor:
    """Forbids tokens less likely than `fraction` times the likeliest."""
    if fraction == 0:
        return logits_BV
    threshold = logits_BV.amax(dim=-1, keepdim=True) + math.log(fraction)
    return logits_BV.masked_fill(logits_BV < threshold, -math.inf)


def process_logits(
    logits_BV: Tensor, config: SamplingConfig, seen_BV: Tensor | None = None, counts_BV: Tensor | None = None
) -> Tensor:
    """All filters of the configuration in their order; at temperature 0 only the bias and the penalties matter.

    Args:
        logits_BV: float32.
        config: the settings, of all rows.
        seen_BV: bool, tokens that occurred in prompt or text, for the repetition penalty.
        counts_BV: how often tokens were generated, for the presence and frequency penalties.

    Raises:
        ValueError: a penalty without its counts.
    """
    if config.logit_bias:
        logits_BV = add_bias(logits_BV, config.logit_bias)
    if config.repetition_penalty != 1.0 and seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, config.repetition_penalty)
    if config.counts_generated:
        if counts_BV is None:
            raise ValueError("presence_penalty and frequency_penalty need counts of the generated tokens here")
        logits_BV = penalize_counts(logits_BV, counts_BV, config.presence_penalty, config.frequency_penalty)
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
    counts_BV: Tensor | None = None,
) -> Tensor:
    """One token per row.

    A draw from softmax(logits) is the argmax of probability / exponential noise (the exponential race).

    Args:
        logits_BV: any floating type.
        config: temperature and filters.
        generator: on the logits' device; one for the batch, or one per row, which makes a row's tokens independent of
            the rows beside it; None = torch's global one.
        seen_BV, counts_BV: as in process_logits.

    Returns:
        (B,) int64.
    """
    logits_BV = process_logits(logits_BV.float(), config, seen_BV, counts_BV)
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    noise = torch.empty_like(logits_BV)
    if generator is None or isinstance(generator, Generator):
        noise.exponential_(generator=generator)
    else:
        for row, own in zip(noise, generator, strict=True):
            row.exponential_(generator=own)
    return torch.softmax(logits_BV, dim=-1).div_(noise).argmax(dim=-1)
