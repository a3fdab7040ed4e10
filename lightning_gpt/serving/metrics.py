"""What Prometheus reads of the service.

Labels take few values whatever clients send: models, versions and endpoints that the service does not have share one
series.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning_gpt.serving.metric_table import (
    BREAKER_STATES,
    EACH,
    ENDPOINTS,
    GENERATES,
    METRICS,
    PREFIX,
    REASONS,
)
from lightning_gpt.serving.record import RequestRecord, WorkerStats

_ERRORS_AS = {
    "rate_limit_exceeded": "rate_limit",
    "too_many_parallel_requests": "rate_limit",
    "insufficient_quota": "quota",
    "deadline_exceeded": "deadline",
    "client_deadline": "deadline",
    "invalid_api_key": "unauthorized",
    "too_many_connections": "queue_full",
    "headers_too_large": "too_large",
}
"""Code of an ApiError -> reason, where they are not the same."""
_BROKEN_STREAMS = {"deadline_exceeded": 504, "client_deadline": 408}
"""Code of a stream that ended early -> status that it counts as; else 500."""
_COUNTS = {
    "prompt_tokens": "prompt_tokens_total",
    "shared_tokens": "prefix_cache_hit_tokens_total",
    "generated_tokens": "generation_tokens_total",
    "preemptions": "num_preemptions_total",
    "drafted_tokens": "spec_decode_num_draft_tokens_total",
    "accepted_tokens": "spec_decode_num_accepted_tokens_total",
}
"""Count of a worker -> counter."""
_BEGINNING = WorkerStats()
_FINISHES = ("stop", "length")
_GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "batch_occupancy",
    "worker_up",
    "worker_utilization",
    "worker_resident_memory_bytes",
)
"""What follows from workers' reports."""


class Metrics:
    """The metrics of one service in a registry of their own.

    For one thread: the event loop's. A finished request costs about 10 us.

    Args:
        endpoints: routes that may be labels.
    """

    def __init__(self, endpoints: Collection[str] = ENDPOINTS) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            PlatformCollector,
            ProcessCollector,
            disable_created_metrics,
        )

        disable_created_metrics()  # a second series beside each counter, which nothing reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        kinds = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}
        self._families: dict[str, Any] = {}
        for one in METRICS:
            extra = {"buckets": one.buckets} if one.buckets else {}
            family = kinds[one.kind](one.name, one.help, one.labels, registry=self.registry, **extra)
            self._families[one.name.removeprefix(PREFIX)] = family
        self._endpoints = frozenset(endpoints)
        self._models: dict[str, set[str]] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._replicas: dict[tuple[str, str], dict[str, tuple[WorkerStats, float]]] = {}
        self._queued: dict[tuple[str, str], int] = {}

    def add(self, model: str, version: str) -> None:
        """Makes a version known, with all that is counted of it at 0, so that rates see the first event."""
        if version in self._models.setdefault(model, set()):
            return
        self._models[model].add(version)
        for one in METRICS:
            if one.labels == EACH:
                self._child(one.name.removeprefix(PREFIX), model, version)
        for reason in _FINISHES:
            self._child("request_success_total", model, version, reason)
        for endpoint in GENERATES:
            for code in ("200", "500", "503", "504"):
                self._child("http_requests_total", endpoint, model, version, code)
                self._child("http_requests_total", endpoint, model, "", code)
        for reason in REASONS:
            self._child("admission_rejections_total", model, reason)

    def forget(self, model: str, version: str) -> None:
        """Takes out all series of a version that is unloaded; those of the model as well, when it was the last."""
        versions = self._models.get(model, set())
        versions.discard(version)
        if not versions:
            self._models.pop(model, None)
        self._replicas.pop((model, version), None)
        self._queued.pop((model, version), None)
        labels_of = {one.name.removeprefix(PREFIX): one.labels for one in METRICS}
        for key in list(self._children):
            labels = dict(zip(labels_of[key[0]], key[1:]))
            if labels["model"] == model and (labels.get("version") == version or model not in self._models):
                self._families[key[0]].remove(*key[1:])
                del self._children[key]

    def finished(self, record: RequestRecord) -> None:
        """Counts a request; once, when its last byte has gone (`record.finished` is set) or its client has."""
        assert record.finished is not None, "finished is set before a request is counted"
        model, version = self._named(record.model, record.version)
        endpoint = record.endpoint if record.endpoint in self._endpoints else "other"
        status = record.status
        whole = status == 200 and record.code is None
        if status == 200 and not whole:
            status = _BROKEN_STREAMS.get(record.code, 500)
        code = str(status) if 100 <= status <= 599 else "other"
        self._child("http_requests_total", endpoint, model, version, code).inc()
        if status == 499:
            self._child("client_disconnects_total", model, version).inc()
        if record.retries:
            self._child("request_retries_total", model, version).inc(record.retries)
        if record.cached:
            self._child("response_cache_hits_total", model, version).inc()
        if record.dispatched is not None:
            queued = record.dispatched - record.received
            self._child("request_queue_time_seconds", model, version).observe(queued)
        if not whole or endpoint not in GENERATES:
            return
        reason = record.finish_reason if record.finish_reason in _FINISHES else "other"
        self._child("request_success_total", model, version, reason).inc()
        took = record.finished - record.received
        self._child("e2e_request_latency_seconds", model, version).observe(took)
        if record.first_token is None:
            return
        first = record.first_token - record.received
        self._child("time_to_first_token_seconds", model, version).observe(first)
        if record.completion_tokens > 1:
            each = (record.finished - record.first_token) / (record.completion_tokens - 1)
            self._child("inter_token_latency_seconds", model, version).observe(each)

    def rejected(self, model: str, reason: str) -> None:
        """Counts a request that was not admitted.

        Args:
            model: as the client named it; unknown ones share a series.
            reason: of REASONS, or the `code` of the ApiError. One whose worker has died was admitted: its failure is
                counted by `finished`, and not here.
        """
        if reason == "worker_died":
            return
        reason = _ERRORS_AS.get(reason, reason)
        if reason not in REASONS:
            reason = "other"
        self._child("admission_rejections_total", model if model in self._models else "", reason).inc()

    def turned_away(self, status: int, code: str | None) -> None:
        """Counts what was refused before it was a request: too many connections, headers that are too large or late.

        Args:
            status: of the answer.
            code: of the error.
        """
        self._child("http_requests_total", "other", "", "", str(status)).inc()
        if code in _ERRORS_AS:
            self.rejected("", code)

    def worker(
        self,
        model: str,
        version: str,
        replica: str,
        stats: WorkerStats,
        previous: WorkerStats | None,
        seconds: float,
    ) -> None:
        """Takes in a report of a worker.

        Args:
            replica: its name among those of the version.
            stats: the report; its counts run from the worker's beginning.
            previous: the one before it of the same worker; None = this is its first. One whose counts are beyond
                those of `stats` was of another worker, and is not used.
            seconds: between the two, or since the worker began.
        """
        self.add(model, version)
        if previous is None or previous.steps > stats.steps or previous.busy_s > stats.busy_s:
            previous = _BEGINNING
        for count, name in _COUNTS.items():
            grown = getattr(stats, count) - getattr(previous, count)
            if grown > 0:
                self._child(name, model, version).inc(grown)
        busy = (stats.busy_s - previous.busy_s) / seconds if seconds > 0 else 0.0
        self._replicas.setdefault((model, version), {})[replica] = stats, min(max(busy, 0.0), 1.0)
        self._sum_up(model, version)

    def gone(self, model: str, version: str, replica: str) -> None:
        """A worker is no more: its share of the gauges goes, what it counted stays."""
        if self._replicas.get((model, version), {}).pop(replica, None) is not None:
            self._sum_up(model, version)

    def queue(self, model: str, version: str, waiting: int) -> None:
        """Requests that wait in the gateway; the workers' own are added."""
        self.add(model, version)
        self._queued[model, version] = waiting
        reports = self._replicas.get((model, version), {}).values()
        waiting += sum(stats.waiting for stats, _ in reports)
        self._child("num_requests_waiting", model, version).set(waiting)

    def breaker(self, model: str, version: str, state: str) -> None:
        """The circuit breaker is closed, half_open or open."""
        self._gauge("breaker_state", model, version, BREAKER_STATES[state])

    def degraded(self, model: str, version: str, on: bool) -> None:
        """Whether answers are cut or given by a smaller model."""
        self._gauge("degraded", model, version, float(on))

    def weight(self, model: str, version: str, share: float) -> None:
        """Share of the model's requests that a version gets, 0 to 1."""
        self._gauge("version_weight", model, version, share)

    def predicted_wait(self, model: str, version: str, seconds: float) -> None:
        """Wait that a request which came now would have."""
        self._gauge("predicted_wait_seconds", model, version, seconds)

    def restarted(self, model: str, version: str) -> None:
        """A worker was started in place of a dead one."""
        self.add(model, version)
        self._child("worker_restarts_total", model, version).inc()

    def rolled_back(self, model: str, version: str) -> None:
        """A version was taken out for errors or latency."""
        self.add(model, version)
        self._child("rollbacks_total", model, version).inc()

    def cache_missed(self, model: str, version: str) -> None:
        """The response cache was asked and did not have it; hits are told by `finished`."""
        self.add(model, version)
        self._child("response_cache_misses_total", model, version).inc()

    def text(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body of /metrics.

        Args:
            accept: the header Accept; OpenMetrics for who asks for it, else Prometheus' text format.
        """
        if "application/openmetrics-text" in accept:
            from prometheus_client.openmetrics import exposition

            return exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(self.registry)
        from prometheus_client import generate_latest

        return "text/plain; version=0.0.4; charset=utf-8", generate_latest(self.registry)

    def _named(self, model: str, version: str) -> tuple[str, str]:
        """Names that may be labels."""
        versions = self._models.get(model)
        if versions is None:
            return "", ""
        return model, version if version in versions else ""

    def _child(self, name: str, *labels: str) -> Any:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families[name].labels(*labels)
        return child

    def _gauge(self, name: str, model: str, version: str, value: float) -> None:
        self.add(model, version)
        self._child(name, model, version).set(value)

    def _sum_up(self, model: str, version: str) -> None:
        """The gauges of a version from the last report of each of its replicas."""
        reports = list(self._replicas.get((model, version), {}).values())
        stats = [one for one, _ in reports]
        running, count = sum(one.running for one in stats), max(len(stats), 1)
        values = (
            running,
            sum(one.waiting for one in stats) + self._queued.get((model, version), 0),
            sum(one.cache_use for one in stats) / count,
            running / max(sum(one.max_running for one in stats), 1),
            len(stats),
            sum(busy for _, busy in reports) / count,
            sum(one.resident_bytes for one in stats),
        )
        for name, value in zip(_GAUGES, values):
            self._child(name, model, version).set(value)
