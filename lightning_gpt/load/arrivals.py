"""When requests are due: Poisson, even or in groups, at a rate that stands, climbs or goes in steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_REQUESTS = 50_000_000
"""More arrivals than this are refused: they are drawn beforehand and held in memory."""


@dataclass(frozen=True)
class Segment:
    """A part of the schedule, in which the rate goes evenly from one value to another."""

    rate_from: float
    """Requests a second at its beginning."""
    rate_to: float
    """Requests a second at its end."""
    seconds: float

    @property
    def requests(self) -> float:
        """Expected number of arrivals."""
        return (self.rate_from + self.rate_to) / 2 * self.seconds

    def times(self, counts: np.ndarray) -> np.ndarray:
        """Seconds from the segment's beginning at which the expected number of arrivals reaches `counts`, [N]."""
        slope = (self.rate_to - self.rate_from) / self.seconds
        # The root of a*t + slope*t*t/2 = count in the form that stays exact for slope = 0.
        root = np.sqrt(np.maximum(self.rate_from**2 + 2 * slope * counts, 0.0))
        below = self.rate_from + root
        return np.divide(2 * counts, below, out=np.zeros_like(counts), where=below > 0)


def parse_steps(text: str) -> list[Segment]:
    """ "100:10,100-200:30" -> 10 s at 100 requests/s, then 30 s in which the rate climbs from 100 to 200.

    Raises:
        ValueError: something else stands there.
    """
    segments = []
    for word in str(text).split(","):
        rates, _, seconds = word.strip().partition(":")
        try:
            first, _, last = rates.partition("-")
            segment = Segment(float(first), float(last or first), float(seconds))
        except ValueError:
            raise ValueError(
                f"steps={text}: {word.strip()!r} must be RATE:SECONDS or FROM-TO:SECONDS, such as 100:10,200:10"
            ) from None
        if not (0 <= segment.rate_from < np.inf and 0 <= segment.rate_to < np.inf and 0 < segment.seconds < np.inf):
            raise ValueError(f"steps={text}: {word.strip()!r} needs rates of at least 0 and seconds above 0")
        segments.append(segment)
    if not any(segment.requests for segment in segments):
        raise ValueError(f"steps={text} sends nothing: give a rate above 0")
    return segments


def arrival_times(segments: list[Segment], arrivals: str, burst: int, seed: int, most: int | None = None) -> np.ndarray:
    """Seconds from the beginning at which requests are due, ascending, [N]; a function of its arguments alone.

    Arrivals are drawn for a rate of one a second and moved to where the expected number of arrivals of the schedule
    reaches that time: a Poisson process stays one under such a change of time, whatever the rate does.

    Args:
        segments: the rate over time.
        arrivals: poisson, or constant (evenly apart).
        burst: requests that are due together; the rate stays as it is.
        seed: of the draws.
        most: no more requests than this.
    """
    total = sum(segment.requests for segment in segments)
    if total > MOST_REQUESTS:
        raise ValueError(
            f"{total:,.0f} requests are too many to plan, at most {MOST_REQUESTS:,}: lower rate or duration"
        )
    groups = total / burst
    if arrivals == "constant":
        unit = np.arange(int(np.ceil(groups - 1e-9)), dtype=np.float64)
    else:
        rng = np.random.default_rng([seed, 1])
        unit = np.empty(0)
        while not len(unit) or unit[-1] < groups:
            gaps = rng.exponential(size=int(groups * 1.05) + 64)
            unit = np.concatenate([unit, np.cumsum(gaps) + (unit[-1] if len(unit) else 0.0)])
        unit = unit[unit < groups]
    counts = np.repeat(unit * burst, burst)[:most]
    due, before, start = [], 0.0, 0.0
    for segment in segments:
        inside = counts[(counts >= before) & (counts < before + segment.requests)] - before
        due.append(start + segment.times(inside))
        before += segment.requests
        start += segment.seconds
    return np.concatenate(due)
