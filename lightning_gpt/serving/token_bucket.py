"""A token bucket: a steady rate with room for bursts."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Fills at a steady rate up to its size; what is taken must be there.

    In any time t, `take` grants at most burst + rate * t, and one request more where it is larger than the bucket.

    Args:
        rate_per_s: tokens that flow in each second, above 0.
        burst: what it holds at most, and at first.
        clock: seconds.
    """

    __slots__ = ("_at", "_level", "burst", "clock", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        assert rate_per_s > 0
        assert burst > 0
        self.rate_per_s, self.burst, self.clock = float(rate_per_s), float(burst), clock
        self._level, self._at = self.burst, clock()

    @property
    def level(self) -> float:
        """What is there now; negative = owed."""
        now = self.clock()
        if now > self._at:  # a clock that goes back fills nothing
            self._level = min(self._level + (now - self._at) * self.rate_per_s, self.burst)
            self._at = now
        return self._level

    def wait_s(self, n: float) -> float:
        """Seconds until `take(n)` would grant; 0.0 = now."""
        # What is larger than the bucket waits until it is full and leaves it owing: else it would wait for ever.
        missing = min(n, self.burst) - self.level
        return 0.0 if missing <= 1e-9 * self.burst else missing / self.rate_per_s

    def take(self, n: float) -> float:
        """Takes n if they are there: 0.0 = granted, else the seconds until they could be, and nothing is taken."""
        wait = self.wait_s(n)
        if wait == 0.0:
            self._level -= n
        return wait

    def give_back(self, n: float) -> None:
        """Returns what was taken and not used."""
        self._level = min(self.level + n, self.burst)

    def debit(self, n: float) -> None:
        """Takes n that are already used; the level may become negative."""
        self._level = self.level - n

    def full_in_s(self) -> float:
        """Seconds until it is full."""
        return max((self.burst - self.level) / self.rate_per_s, 0.0)

    def configure(self, rate_per_s: float, burst: float) -> None:
        """Other numbers from now on; what is missing from the old bucket is missing from the new one."""
        used = self.burst - self.level
        self.rate_per_s, self.burst = float(rate_per_s), float(burst)
        self._level = self.burst - used
