"""When the service is short of breath: shorter answers first, then a smaller model, and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

NORMAL, SHORTER, SMALLER = 0, 1, 2
"""As always; max_tokens capped; the smaller model, if one is configured, with the cap."""


@dataclass(frozen=True, slots=True)
class DegradationConfig:
    """Pressure is the predicted wait over the longest that is allowed."""

    enter: tuple[float, float] = (0.5, 0.8)
    """Pressure from which on level 1, and level 2, is entered."""
    leave: tuple[float, float] = (0.2, 0.4)
    """Pressure below which level 1, and level 2, is left."""
    rise_s: float = 1.0
    """A level is kept at least this long before a higher one."""
    dwell_s: float = 10.0
    """A level is kept at least this long before a lower one."""

    def __post_init__(self) -> None:
        if not (0 < self.enter[0] <= self.enter[1] and 0 < self.leave[0] <= self.leave[1]):
            raise ValueError(f"degradation enter={self.enter} leave={self.leave}: give positive, rising pressures")
        if self.leave[0] >= self.enter[0] or self.leave[1] >= self.enter[1]:
            raise ValueError(f"degradation leave={self.leave}: give less than enter={self.enter}, else it flutters")


class Degradation:
    """The level that the service is on.

    Args:
        smaller_model: whether there is one: the highest level is 2, else 1.
        config: its numbers.
        clock: seconds.
    """

    def __init__(
        self,
        smaller_model: bool = False,
        config: DegradationConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.clock = config or DegradationConfig(), clock
        self.highest = SMALLER if smaller_model else SHORTER
        self.level = NORMAL
        self._since = float("-inf")

    def update(self, pressure: float, breaker_closed: bool = True) -> int:
        """Moves by one level at most.

        Args:
            pressure: predicted wait / its limit, now.
            breaker_closed: False counts as a pressure without end.

        Returns:
            the level from now on.
        """
        now = self.clock()
        pressure = pressure if breaker_closed else float("inf")
        kept = now - self._since
        if self.level < self.highest and pressure >= self.config.enter[self.level] and kept >= self.config.rise_s:
            self._go(self.level + 1, now)
        elif self.level > NORMAL and pressure < self.config.leave[self.level - 1] and kept >= self.config.dwell_s:
            self._go(self.level - 1, now)
        return self.level

    def _go(self, level: int, now: float) -> None:
        self.level, self._since = level, now

    def cap(self, max_tokens: int, shorter: int) -> int:
        """How long an answer may be on this level."""
        return max_tokens if self.level == NORMAL else min(max_tokens, shorter)
