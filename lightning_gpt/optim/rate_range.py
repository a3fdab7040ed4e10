"""The learning-rate range test (Smith, 2017, arXiv:1506.01186, section 3.3): what a sweep of growing rates shows."""

import math
from dataclasses import dataclass

import numpy as np

THRESHOLD = 4.0
"""A loss of so many times the lowest has diverged (as fastai and Lightning have it)."""


def sweep_rates(low: float, high: float, steps: int) -> list[float]:
    """Rates from `low` to `high`, each by the same factor above the one before.

    Raises:
        ValueError: not 0 < low < high, or fewer than ten steps.
    """
    if not 0 < low < high or not math.isfinite(high):
        raise ValueError(f"low={low:g} and high={high:g} must be learning rates with 0 < low < high")
    if steps < 10:
        raise ValueError(f"steps={steps} must be at least 10")
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def has_diverged(losses: list[float], threshold: float = THRESHOLD) -> bool:
    """Whether the last loss is no number, or above `threshold` times the lowest so far."""
    return not math.isfinite(losses[-1]) or losses[-1] > threshold * min(losses)


@dataclass(frozen=True)
class RangeTest:
    """What a sweep showed; rates are those of the optimizer's first group."""

    rates: list[float]
    losses: list[float]
    """Of each step, finite, in nats per token; of step i with the weights that the rates before i left."""
    smooth: list[float]
    """Centred moving average of the losses: one that looks back only would move every reading to higher rates."""
    steepest: float
    """Where the smooth loss falls fastest over the logarithm of the rate: what is suggested, as by fastai and by
    Lightning. A tenth of the rate that diverges, another rule, is far too high for Adam, whose steps stay bounded."""
    lowest: float
    """Where the smooth loss is lowest: the most that one should try."""
    diverged: float | None
    """Where the sweep ended because the loss was infinite or many times the lowest; None: it came to its end."""


def read_range(rates: list[float], losses: list[float], diverged: float | None, window: int = 0) -> RangeTest:
    """Reads a sweep.

    Args:
        rates: of each step, growing by one factor.
        losses: of each step.
        diverged: as RangeTest's.
        window: steps of the moving average, odd; 0: a tenth of the sweep.

    Raises:
        ValueError: too few steps before it diverged.
    """
    window = window or max(3, len(rates) // 10 | 1)
    if len(losses) < window + 2:
        raise ValueError(
            f"the loss diverged after {len(losses)} steps, at a rate of {rates[len(losses) - 1]:g}: begin lower"
        )
    smooth, slopes = _local_lines(np.asarray(losses, dtype=np.float64), window)
    lowest = int(smooth.argmin())
    steepest = int(slopes[: lowest + 1].argmin())
    return RangeTest(rates, losses, smooth.tolist(), rates[steepest], rates[lowest], diverged)


def _local_lines(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Height and slope per step of the straight line through the `window` values around each; fewer at the ends."""
    half, heights, slopes = window // 2, [], []
    for centre in range(len(values)):
        reach = min(half, centre, len(values) - 1 - centre)
        part = values[centre - reach : centre + reach + 1]
        heights.append(part.mean())
        offsets = np.arange(-reach, reach + 1)
        slopes.append((offsets * part).sum() / (offsets**2).sum() if reach else 0.0)
    return np.array(heights), np.array(slopes)
