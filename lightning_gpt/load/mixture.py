"""Whole numbers drawn from a distribution that is written in a word: 16, 8-32, 16:0.5,64:0.3,100-200:0.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Ranges of numbers with their shares."""

    ranges: tuple[tuple[int, int], ...]
    """(first, last), both possible."""
    shares: tuple[float, ...]
    """Of each range; their sum is 1."""

    @classmethod
    def parse(cls, name: str, text: str) -> Mixture:
        """Reads "16", "8-32" or "16:0.5,64:0.3,256:0.2"; shares need not sum to 1.

        Args:
            name: of the setting, for the error.
            text: the distribution.

        Raises:
            ValueError: something else stands there.
        """
        ranges, shares = [], []
        for word in str(text).split(","):
            numbers, colon, share = word.strip().partition(":")
            first, dash, last = numbers.partition("-")
            try:
                low, high, weight = int(first), int(last if dash else first), float(share) if colon else 1.0
            except ValueError:
                low, high, weight = 0, 0, 0.0
            if not 1 <= low <= high or not 0 < weight < float("inf"):
                raise ValueError(
                    f"{name}={text}: {word.strip()!r} must be a number above 0, a range or either with a share, "
                    "such as 16 or 8-32 or 16:0.5,64:0.5"
                )
            ranges.append((low, high))
            shares.append(weight)
        total = sum(shares)
        return cls(tuple(ranges), tuple(share / total for share in shares))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Numbers, int64 [count]."""
        which = rng.choice(len(self.ranges), size=count, p=self.shares)
        low, high = np.array(self.ranges).T
        return rng.integers(low[which], high[which] + 1)
