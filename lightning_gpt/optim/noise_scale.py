"""The gradient noise scale (McCandlish et al., 2018, arXiv:1812.06162): up to which batch more data make a better step.

The gradient of a batch of B examples has the squared norm |G|^2 + tr(Sigma) / B in expectation: that of the true
gradient, and the noise of the examples. Norms at two batch sizes tell both (appendix A.1), and their ratio
B_simple = tr(Sigma) / |G|^2 is the batch at which a step is half signal and half noise. Far below it, twice the batch
is worth two steps; far above it, twice the batch is wasted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NoiseScale:
    """What the norms of some steps tell."""

    signal: float
    """|G|^2, squared norm of the true gradient; unbiased, so it may be negative where noise hides it."""
    noise: float
    """tr(Sigma), variance of one example's gradient, summed over the parameters."""
    error: float
    """Standard error of `scale`, by the jackknife over steps; inf where the signal is not above zero."""
    steps: int

    @property
    def scale(self) -> float:
        """B_simple, in the unit of the batch sizes; inf where the signal is not above zero."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def noise_scale(
    small: int, large: int, small_square_norms: Sequence[float], large_square_norms: Sequence[float]
) -> NoiseScale:
    """Estimates the scale from norms at two batch sizes.

    Args:
        small: examples (or windows, or tokens) of the smaller batch.
        large: of the larger.
        small_square_norms: of each step: mean squared norm of gradients of smaller batches.
        large_square_norms: of each step: squared norm of the gradient of a larger one. Both may come of the same
            examples, as micro-batches and their mean do.

    Raises:
        ValueError: fewer than two steps, or not 0 < small < large.
    """
    if not 0 < small < large:
        raise ValueError(f"small={small} and large={large} must be batch sizes with 0 < small < large")
    if len(small_square_norms) != len(large_square_norms) or len(large_square_norms) < 2:
        raise ValueError("norms of at least two steps are needed, at both batch sizes")
    at_small, at_large = np.asarray(small_square_norms, np.float64), np.asarray(large_square_norms, np.float64)
    # Each is unbiased for one step; their ratio is not, which is why they are averaged first (appendix A.1).
    signals = (large * at_large - small * at_small) / (large - small)
    noises = (at_small - at_large) / (1 / small - 1 / large)
    steps = len(signals)
    others_signal = (signals.sum() - signals) / (steps - 1)
    others_noise = (noises.sum() - noises) / (steps - 1)
    signal, noise = float(signals.mean()), float(noises.mean())
    if signal <= 0 or others_signal.min() <= 0:
        return NoiseScale(signal, noise, math.inf, steps)
    scales = others_noise / others_signal
    error = math.sqrt((steps - 1) / steps * float(((scales - scales.mean()) ** 2).sum()))
    return NoiseScale(signal, noise, error, steps)
