"""How long a request would wait, from how fast others were served."""

from __future__ import annotations

import time
from collections.abc import Callable


class WaitPredictor:
    """Learns the rate at which tokens are served while there is more to do than can be done.

    Only such times count: a service that is idle or half full is not slow, it has nothing to do. The rate is tokens
    over seconds, both forgotten by half in each half-life of busy time, so that a long interval weighs what it lasted.

    Args:
        half_life_s: busy seconds after which a measurement counts half.
        enough_s: busy seconds, not yet forgotten, before anything is predicted; until then the guess is 0.0.
        enough: requests finished in busy times before anything is predicted.
        clock: seconds.
    """

    def __init__(
        self,
        half_life_s: float = 10.0,
        enough_s: float = 0.5,
        enough: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.half_life_s, self.enough_s, self.enough, self.clock = half_life_s, enough_s, enough, clock
        self._tokens = self._seconds = 0.0
        self._count = 0
        self._own_tokens = self._own_seconds = 0.0
        self._busy, self._at = False, clock()

    def observe(self, busy: bool, tokens: float = 0.0) -> None:
        """Call it when requests finish, and whenever the queue becomes empty or stops being so.

        Args:
            busy: requests are waiting, from now on.
            tokens: that were served since the last call, in the measure of the queue's costs: of a request that was
                reserved 100 and made 20 it is the 100, as such requests are what is ahead.
        """
        now = self.clock()
        if self._busy:
            passed = max(now - self._at, 0.0)
            keep = 0.5 ** (passed / self.half_life_s)
            self._seconds = self._seconds * keep + passed
            self._tokens = self._tokens * keep + tokens
            self._count += tokens > 0
        self._busy, self._at = busy, now

    def served(self, tokens: float, seconds: float) -> None:
        """One request was served, from its dispatch to its end; teaches how long a request takes by itself."""
        keep = 0.95
        self._own_tokens = self._own_tokens * keep + tokens
        self._own_seconds = self._own_seconds * keep + max(seconds, 0.0)

    @property
    def ready(self) -> bool:
        """Whether it has seen enough to predict."""
        return self._count >= self.enough and self._seconds >= self.enough_s and self._tokens > 0

    @property
    def tokens_per_s(self) -> float | None:
        """Of all requests together in busy times; None = not known yet."""
        return self._tokens / self._seconds if self.ready else None

    def predict(self, tokens_ahead: float, own_tokens: float = 0.0) -> float:
        """Seconds until a request would be dispatched, and with own_tokens until it would be finished.

        Args:
            tokens_ahead: costs of what waits before it.
            own_tokens: its own cost.
        """
        if not self.ready:
            return 0.0
        own = own_tokens * self._own_seconds / self._own_tokens if self._own_tokens > 0 else 0.0
        return tokens_ahead * self._seconds / self._tokens + own
