"""How rotary wavelengths are changed so that a network reads further than it was trained.

| kind   | what changes                                                                  | source                   |
|--------|-------------------------------------------------------------------------------|--------------------------|
| linear | every position is divided by factor                                           | Chen et al., 2023        |
| ntk    | the base grows: the longest wavelength by factor, the shortest not at all      | bloc97, 2023 (NTK-aware) |
| yarn   | long wavelengths as linear, short ones stay, a ramp between; scores grow       | Peng et al., 2023        |
| llama3 | as yarn with a ramp over other wavelengths; scores stay                        | LLaMA 3.1 (Meta, 2024)   |
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScalingKind = Literal["linear", "ntk", "yarn", "llama3"]


@dataclass(frozen=True)
class RopeScaling:
    """A change of the rotary wavelengths.

    Raises:
        ValueError: a number that cannot work, or yarn and llama3 without the original length.
    """

    kind: ScalingKind
    """linear, ntk, yarn or llama3."""
    factor: float
    """How many times further than original_block_size the network is to read; at least 1."""
    original_block_size: int | None = None
    """Context in tokens of the training before; yarn and llama3 need it."""
    beta_fast: float = 32.0
    """yarn: wavelengths that turn this often within original_block_size, or more often, stay."""
    beta_slow: float = 1.0
    """yarn: wavelengths that turn this often or less are divided by factor."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_block_size / this are divided by factor."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_block_size / this stay."""

    def __post_init__(self) -> None:
        if self.kind not in ScalingKind.__args__:
            raise ValueError(
                f"rope_scaling.kind={self.kind!r} is unknown: use one of {', '.join(ScalingKind.__args__)}"
            )
        if self.factor < 1:
            raise ValueError(f"rope_scaling.factor={self.factor} must be at least 1: it says how many times further")
        if self.kind in ("yarn", "llama3") and not self.original_block_size:
            raise ValueError(
                f"rope_scaling.original_block_size={self.original_block_size} is needed by kind={self.kind}: set the "
                "block size that the network was trained with"
            )
        for low, high in (("beta_slow", "beta_fast"), ("low_frequency_factor", "high_frequency_factor")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"rope_scaling.{low}={getattr(self, low)} must be positive and below {high}={getattr(self, high)}"
                )


def rotary_frequencies(size: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Radians per position of each pair of a head, and the factor on cos and sin.

    Args:
        size: D, how many numbers of a head are turned; even.
        theta: base of the wavelengths.
        scaling: None = as in Su et al., 2021.

    Returns:
        (D / 2,) float64 and a float; both match transformers' modeling_rope_utils.
    """
    if scaling is not None and scaling.kind == "ntk":
        theta *= scaling.factor ** (size / max(size - 2, 1))
    frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling is None or scaling.kind == "ntk":
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    turns = scaling.original_block_size * frequency / (2 * math.pi)
    if scaling.kind == "llama3":
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / scaling.factor), 1.0
    # The pair, as a real number, that turns so often within the original length; the ramp runs over pairs.
    first, last = (
        size * math.log(scaling.original_block_size / (2 * math.pi * turns)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), size - 1)
    ramp = ((torch.arange(size // 2, dtype=torch.float64) - first) / max(last - first, 1e-3)).clamp(0, 1)
    growth = 0.1 * math.log(scaling.factor) + 1.0
    return frequency * (1 - ramp + ramp / scaling.factor), growth
