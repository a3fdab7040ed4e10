"""What protects one version of a model: its breaker, the wait that is foreseen, how far its answers are cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lightning_gpt.serving.breaker import CircuitBreaker
from lightning_gpt.serving.config import ServiceConfig
from lightning_gpt.serving.degradation import NORMAL, SMALLER, Degradation
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.wait_predictor import WaitPredictor

if TYPE_CHECKING:
    from lightning_gpt.serving.served_model import ServedVersion


class Lane:
    """The state of one version.

    Args:
        served: the version.
        config: of the service.
        smaller: whether its model has a fallback.
        clock: seconds, the deadlines' clock.
    """

    def __init__(
        self,
        served: ServedVersion,
        config: ServiceConfig,
        smaller: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.served, self.config, self.clock = served, config, clock
        self.breaker = CircuitBreaker(config.breaker, clock)
        self.predictor = WaitPredictor(clock=clock)
        self.degradation = None if config.degradation is None else Degradation(smaller, config.degradation, clock)

    @property
    def open(self) -> bool:
        """Whether the breaker refuses everything."""
        return self.breaker.state == "open"

    @property
    def broken(self) -> bool:
        """Whether it cannot answer now: the breaker is open, or no worker lives."""
        return self.open or not self.served.pool.ready

    @property
    def level(self) -> int:
        """How far answers are cut: 0 = not at all."""
        return NORMAL if self.degradation is None else self.degradation.level

    @property
    def asks_for_help(self) -> bool:
        """Whether the model's fallback should answer."""
        return self.broken or self.level >= SMALLER

    def predicted_wait(self, priority: int = 0) -> float:
        """Seconds until a request that came now would go to a worker."""
        return self.predictor.predict(self.served.pool.queue.tokens_ahead(priority))

    def enter(self, cost: int, priority: int, deadline: float) -> int:
        """Whether a request may join; returns the breaker's ticket.

        Raises:
            ApiError: 503, code breaker_open; 429, code predicted_wait.
        """
        pool = self.served.pool
        self.predictor.observe(busy=len(pool.queue) > 0)
        if len(pool.queue):
            self._foresee(cost, priority, deadline)
        ticket = self.breaker.allow()
        if not ticket:
            raise ApiError(
                503,
                f"{self.served.model} fails most requests and is given a rest: try again later",
                code="breaker_open",
                retry_after_s=self.breaker.retry_after_s,
            )
        return ticket

    def _foresee(self, cost: int, priority: int, deadline: float) -> None:
        ahead = self.served.pool.queue.tokens_ahead(priority)
        wait, end = self.predictor.predict(ahead), self.predictor.predict(ahead, cost)
        left, most = deadline - self.clock(), self.config.limits.max_wait_s
        if most is not None and wait > most:
            message, late = f"would wait {wait:.1f} s, at most {most:g} s are allowed here", wait - most
        elif end > left:
            message, late = f"would take {end:.1f} s and its deadline is in {max(left, 0):.1f} s", end - left
        else:
            return
        raise ApiError(429, f"this request {message}: try again later", code="predicted_wait", retry_after_s=late)

    def refusal(self, priority: int) -> ApiError | None:
        """What any request of this class would be told now; None = it depends on the request."""
        pool, limits = self.served.pool, self.config.limits
        if not len(pool.queue):
            return None
        wait = self.predicted_wait(priority)
        if len(pool.queue) >= limits.max_queue:
            return pool.full(max(wait / 2, 1.0))
        most = limits.timeout_s if limits.max_wait_s is None else limits.max_wait_s
        if wait <= most:
            return None
        return ApiError(
            429,
            f"requests wait {wait:.1f} s now, at most {most:g} s are allowed here: try again later",
            code="predicted_wait",
            retry_after_s=wait - most,
        )

    def leave(self, cost: int, seconds: float) -> None:
        """A request that had been with a worker is over.

        Args:
            cost: tokens that it might have taken.
            seconds: from its dispatch.
        """
        self.predictor.observe(len(self.served.pool.queue) > 0, cost)
        self.predictor.served(cost, seconds)

    def tick(self) -> None:
        """Looks at the pressure; several times a second."""
        self.predictor.observe(busy=len(self.served.pool.queue) > 0)
        if self.degradation is not None:
            limits = self.config.limits
            pressure = self.predicted_wait() / (limits.max_wait_s or limits.timeout_s)
            self.degradation.update(pressure, not self.open)
