"""From what workers say of themselves to metrics."""

from __future__ import annotations

import time

from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.pool import Pool
from lightning_gpt.serving.record import WorkerStats
from lightning_gpt.serving.served_model import ServedVersion


class WorkerReports:
    """Called about twice a second with a pool.

    Args:
        metrics: are told.
        served: whose workers these are.
    """

    def __init__(self, metrics: Metrics, served: ServedVersion) -> None:
        self._metrics, self._model, self._version = metrics, served.model, served.id
        self._last: dict[str, tuple[WorkerStats, float]] = {}
        self._restarts = 0

    def __call__(self, pool: Pool) -> None:
        now, seen = time.monotonic(), set()
        for replica in pool.replicas:
            seen.add(replica.name)
            previous, since = self._last.get(replica.name, (None, now - 1.0))
            if previous is replica.stats:
                continue  # nothing new
            self._last[replica.name] = replica.stats, now
            self._metrics.worker(self._model, self._version, replica.name, replica.stats, previous, now - since)
        for name in self._last.keys() - seen:
            del self._last[name]
            self._metrics.gone(self._model, self._version, name)
        self._metrics.queue(self._model, self._version, pool.waiting)
        for _ in range(pool.restarts - self._restarts):
            self._metrics.restarted(self._model, self._version)
        self._restarts = pool.restarts
