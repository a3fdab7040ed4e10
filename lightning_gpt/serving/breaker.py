"""A circuit breaker: where most calls fail, the others are refused at once, and a few probes see whether it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "half_open", "open"]


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When it opens and how it closes again."""

    window_s: int = 30
    """Whole seconds over which failures are counted."""
    min_calls: int = 20
    """In the window, before their share says anything."""
    max_failure_share: float = 0.5
    """Failed calls of all in the window, from which on it opens."""
    max_in_a_row: int = 10
    """Failures without a success between them that open it whatever the share."""
    cool_down_s: float = 5.0
    """It stays open; doubles with each opening that follows a failed probe."""
    max_cool_down_s: float = 60.0
    probes: int = 2
    """Calls that are let through at a time while it is half-open."""
    successes: int = 3
    """Probes in a row that must succeed before it closes."""
    probe_timeout_s: float = 60.0
    """A probe whose end nobody reports gives its place free after this."""

    def __post_init__(self) -> None:
        for name in ("window_s", "min_calls", "max_in_a_row", "probes", "successes"):
            if getattr(self, name) < 1:
                raise ValueError(f"breaker {name}={getattr(self, name)}: give at least 1")
        if not 0 < self.max_failure_share <= 1:
            raise ValueError(f"breaker max_failure_share={self.max_failure_share}: give a share above 0, at most 1")
        if not 0 < self.cool_down_s <= self.max_cool_down_s:
            raise ValueError(f"breaker cool_down_s={self.cool_down_s}: give more than 0, at most max_cool_down_s")


class CircuitBreaker:
    """Every call asks `allow` and later says `succeeded`, `failed` or `abandoned` with what it was given.

    Only failures of the service count, not refusals of bad requests nor clients that went away (`abandoned`).

    Args:
        config: its numbers.
        clock: seconds.
    """

    def __init__(self, config: BreakerConfig | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self.clock = config or BreakerConfig(), clock
        self.openings = 0
        """Times that it opened, ever."""
        self._good = [0] * self.config.window_s  # a ring of seconds
        self._bad = [0] * self.config.window_s
        self._good_sum = self._bad_sum = self._row = 0
        self._second = int(clock())
        self._state: State = "closed"
        self._epoch = 1  # counts changes of state: reports of calls from before a change are not about it
        self._until = 0.0
        self._relapses = 0
        self._probing = self._probes_good = 0
        self._last_probe = 0.0

    @property
    def state(self) -> State:
        """closed, half_open or open."""
        if self._state == "open" and self.clock() >= self._until:
            self._change("half_open")
            self._probing = self._probes_good = 0
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a refused call may come again; 0.0 while it is closed."""
        state = self.state
        if state == "closed":
            return 0.0
        return max(self._until - self.clock(), 0.0) if state == "open" else 1.0

    def allow(self) -> int:
        """Whether a call may go through: 0 = no; else a number that the call hands back when it reports."""
        state = self.state
        if state == "open":
            return 0
        if state == "half_open":
            now = self.clock()
            if self._probing >= self.config.probes:
                if now - self._last_probe < self.config.probe_timeout_s:
                    return 0
                self._probing = 0
            self._probing += 1
            self._last_probe = now
        return self._epoch

    def succeeded(self, ticket: int | None = None) -> None:
        """The call was answered."""
        if not self._current(ticket):
            return
        if self._state == "half_open":
            self._probing = max(self._probing - 1, 0)
            self._probes_good += 1
            if self._probes_good >= self.config.successes:
                self._close()
            return
        self._row = 0
        self._turn()
        self._good[self._second % self.config.window_s] += 1
        self._good_sum += 1

    def failed(self, ticket: int | None = None) -> None:
        """The service failed the call."""
        if not self._current(ticket):
            return
        if self._state == "half_open":
            self._relapses += 1
            self._open()
            return
        self._row += 1
        self._turn()
        self._bad[self._second % self.config.window_s] += 1
        self._bad_sum += 1
        calls = self._good_sum + self._bad_sum
        share_is_high = calls >= self.config.min_calls and self._bad_sum >= self.config.max_failure_share * calls
        if share_is_high or self._row >= self.config.max_in_a_row:
            self._open()

    def abandoned(self, ticket: int | None = None) -> None:
        """The call ended without telling anything of the service: the client left, its deadline passed in the queue."""
        if self._current(ticket) and self._state == "half_open":
            self._probing = max(self._probing - 1, 0)

    def _current(self, ticket: int | None) -> bool:
        return self.state != "open" and ticket in (None, self._epoch)

    def _change(self, state: State) -> None:
        self._state = state
        self._epoch += 1

    def _open(self) -> None:
        self._change("open")
        self.openings += 1
        cool_down = min(self.config.cool_down_s * 2.0 ** min(self._relapses, 60), self.config.max_cool_down_s)
        self._until = self.clock() + cool_down

    def _close(self) -> None:
        self._change("closed")
        self._relapses = self._row = self._good_sum = self._bad_sum = 0
        self._good = [0] * self.config.window_s
        self._bad = [0] * self.config.window_s
        self._second = int(self.clock())

    def _turn(self) -> None:
        """Forgets the seconds that have left the window."""
        second = int(self.clock())
        size = self.config.window_s
        for number in range(max(self._second + 1, second - size + 1), second + 1):
            self._good_sum -= self._good[number % size]
            self._bad_sum -= self._bad[number % size]
            self._good[number % size] = self._bad[number % size] = 0
        self._second = max(self._second, second)
