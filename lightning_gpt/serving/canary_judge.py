"""Whether a canary does worse than the stable version, by exact tests that allow for looking again and again.

All three questions are answered by Fisher's exact test, one-sided, on a 2 x 2 table. Errors: failed or not, by version.
Latency: take the median (then the 95th percentile) of both versions' latencies together; above it or not, by version.
If both versions were the same, every assignment of the latencies to versions would be equally likely, so that this too
is a hypergeometric draw, whatever the distribution: the quantile test that has the median test as its best-known case.

Looking: the k-th look may err with probability alpha * 6 / (pi k)^2, shared by the three tests. These sum to alpha over
any number of looks, so a canary that is no worse is rolled back with probability alpha at most in its whole life, even
though windows overlap (union bound).

A difference must also matter: more errors by an absolute margin, slower by a ratio.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """When a canary is rolled back."""

    alpha: float = 0.01
    """Probability that a canary which is no worse is ever rolled back, at most."""
    min_requests: int = 30
    """Of the canary, before the first look."""
    every: int = 10
    """Requests of the canary between looks, or a tenth of those in the window if that is more."""
    window: int = 500
    """Latest requests of the canary that are looked at."""
    stable_per_canary: int = 4
    """Latest requests of the stable version that are kept beside each of the canary's, so that both windows cover the
    same times and meet the same load."""
    error_margin: float = 0.01
    """Its share of errors must be above the stable version's by this."""
    latency_ratio: float = 1.3
    """Its median, or its 95th percentile, must be above the stable version's by this factor."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"canary alpha={self.alpha}: give a probability between 0 and 1")
        for name in ("min_requests", "every", "window", "stable_per_canary"):
            if getattr(self, name) < 1:
                raise ValueError(f"canary {name}={getattr(self, name)}: give at least 1")
        if self.min_requests > self.window:
            raise ValueError(f"canary min_requests={self.min_requests}: give at most window={self.window}")
        if self.error_margin < 0 or self.latency_ratio < 1:
            raise ValueError(
                f"canary error_margin={self.error_margin} latency_ratio={self.latency_ratio}: give at least 0 and 1"
            )


_Outcome = tuple[bool, float | None]


class CanaryJudge:
    """The record of one canary beside the stable version.

    Args:
        config: its numbers.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        self.config = config = config or JudgeConfig()
        self.looks = 0
        # Each of the canary's with those of the stable version since the one before: they leave the window together,
        # so that waves of load hit both sides alike.
        self._window: deque[tuple[_Outcome, tuple[_Outcome, ...]]] = deque(maxlen=config.window)
        self._latest: deque[_Outcome] = deque(maxlen=config.stable_per_canary)
        self._since_look = 0

    def stable(self, ok: bool, latency_s: float | None = None) -> None:
        """A request of the stable version ended."""
        self._latest.append((ok, latency_s))

    def canary(self, ok: bool, latency_s: float | None = None) -> str | None:
        """A request of the canary ended; returns why it must go, None = it may stay."""
        self._window.append(((ok, latency_s), tuple(self._latest)))
        self._latest.clear()
        self._since_look += 1
        seen = len(self._window)
        if seen < self.config.min_requests or self._since_look < max(self.config.every, seen // 10):
            return None
        self._since_look = 0
        self.looks += 1
        return self._look(self.config.alpha * 6 / (math.pi * self.looks) ** 2 / 3)

    def _look(self, alpha: float) -> str | None:
        ours = [one for one, _ in self._window]
        theirs = [one for _, group in self._window for one in group]
        if not theirs:
            return None
        failed, failed_there = (sum(not ok for ok, _ in outcomes) for outcomes in (ours, theirs))
        share, share_there = failed / len(ours), failed_there / len(theirs)
        if share > share_there + self.config.error_margin:
            p = fisher_greater(failed, len(ours), failed_there, len(theirs))
            if p <= alpha:
                return f"errors {share:.1%} of {len(ours)}, stable {share_there:.1%} of {len(theirs)} (p={p:.1g})"
        times, times_there = (
            sorted(seconds for ok, seconds in outcomes if ok and seconds is not None) for outcomes in (ours, theirs)
        )
        if len(times) < self.config.min_requests or len(times_there) < self.config.min_requests:
            return None
        both = sorted(times + times_there)
        for name, quantile in (("median", 0.5), ("P95", 0.95)):
            time, time_there = _quantile(times, quantile), _quantile(times_there, quantile)
            if time <= time_there * self.config.latency_ratio:
                continue
            threshold = _quantile(both, quantile)
            above, above_there = (sum(one > threshold for one in group) for group in (times, times_there))
            p = fisher_greater(above, len(times), above_there, len(times_there))
            if p <= alpha:
                return f"{name} latency {time:.3g} s, stable {time_there:.3g} s (p={p:.1g})"
        return None


def _quantile(values: list[float], quantile: float) -> float:
    """Of sorted values: the smallest with at least that share at or below it."""
    return values[max(math.ceil(quantile * len(values)) - 1, 0)]


def fisher_greater(hits: int, size: int, hits_there: int, size_there: int) -> float:
    """P-value of Fisher's exact test that the first group's share of hits is not the greater one.

    Args:
        hits, size: of the first group.
        hits_there, size_there: of the second.

    Returns:
        P(X >= hits) for X hypergeometric: the hits among `size` drawn of all.
    """
    total, marked = size + size_there, hits + hits_there
    most = min(size, marked)
    least = max(0, marked - size_there)
    if hits <= least:
        return 1.0
    base = _log_choose(total, size)
    probability = math.exp(_log_choose(marked, hits) + _log_choose(total - marked, size - hits) - base)
    sum_ = probability
    for x in range(hits, most):  # each term from the one before
        probability *= (marked - x) * (size - x) / ((x + 1) * (total - marked - size + x + 1))
        sum_ += probability
        if probability < sum_ * 1e-17:
            break
    return min(sum_, 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
