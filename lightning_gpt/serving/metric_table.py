"""The table of the service's metrics: names, kinds, labels, buckets, and the values that labels may have.

Names are vLLM's with a prefix of our own, so that dashboards move with one replacement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PREFIX = "lightning_gpt_"
LATENCY_BUCKETS = tuple(
    ms / 1000 for ms in (5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1000, 2500, 5000, 10000, 30000)
)
"""Seconds; 0.5 is the objective, so it is a boundary."""
FINE_BUCKETS = (0.0005, 0.001, 0.0025, *LATENCY_BUCKETS)
"""For what is shorter than a request: a token's time, a wait in the queue."""
EACH = ("model", "version")
"""Labels of most metrics."""


class Metric(NamedTuple):
    """One metric as it is scraped."""

    name: str
    kind: str
    """gauge, counter or histogram."""
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def _metric(kind: str, name: str, text: str, labels: tuple[str, ...] = EACH, buckets: Any = ()) -> Metric:
    return Metric(PREFIX + name, kind, labels, text, buckets)


METRICS = (
    _metric("gauge", "num_requests_running", "Requests being computed."),
    _metric("gauge", "num_requests_waiting", "Requests waiting, in the gateway and in the workers."),
    _metric("gauge", "kv_cache_usage_perc", "Share of the key/value blocks that are held, 0 to 1, mean of replicas."),
    _metric("gauge", "batch_occupancy", "Requests being computed over those that could be at once, 0 to 1."),
    _metric("gauge", "worker_up", "Workers that report."),
    _metric("gauge", "worker_utilization", "Busy share of the step threads between two reports, mean of replicas."),
    _metric("gauge", "worker_resident_memory_bytes", "Memory of the workers, their sum."),
    _metric("gauge", "breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open."),
    _metric("gauge", "degraded", "1 while answers are cut or given by a smaller model."),
    _metric("gauge", "version_weight", "Share of the model's requests that the version gets, 0 to 1."),
    _metric("gauge", "predicted_wait_seconds", "Wait that a request which came now would have."),
    _metric("counter", "prompt_tokens_total", "Tokens of prompts that workers took."),
    _metric("counter", "generation_tokens_total", "Tokens generated."),
    _metric("counter", "prefix_cache_hit_tokens_total", "Prompt tokens not computed, as another request had them."),
    _metric("counter", "num_preemptions_total", "Times that a request was set back for want of memory."),
    _metric("counter", "spec_decode_num_draft_tokens_total", "Tokens drafted."),
    _metric("counter", "spec_decode_num_accepted_tokens_total", "Drafted tokens that were right."),
    _metric("counter", "request_success_total", "Requests answered whole.", (*EACH, "finished_reason")),
    _metric(
        "counter",
        "http_requests_total",
        "HTTP requests by status; a stream that breaks after its headers counts as 500 or 504.",
        ("endpoint", *EACH, "code"),
    ),
    _metric("counter", "admission_rejections_total", "Requests not admitted.", ("model", "reason")),
    _metric("counter", "request_retries_total", "Times that a request was given to another worker."),
    _metric("counter", "worker_restarts_total", "Workers started in place of dead ones."),
    _metric("counter", "rollbacks_total", "Times that a version was taken out for errors or latency."),
    _metric("counter", "response_cache_hits_total", "Requests answered from the response cache."),
    _metric("counter", "response_cache_misses_total", "Requests that the response cache did not hold."),
    _metric("counter", "client_disconnects_total", "Requests whose client went away before the end."),
    _metric(
        "histogram",
        "time_to_first_token_seconds",
        "Arrival to first token, of streamed answers.",
        buckets=LATENCY_BUCKETS,
    ),
    _metric(
        "histogram",
        "inter_token_latency_seconds",
        "Time per token after the first, of streamed answers: one observation a request.",
        buckets=FINE_BUCKETS,
    ),
    _metric(
        "histogram",
        "e2e_request_latency_seconds",
        "Arrival to the last byte, of requests answered whole.",
        buckets=LATENCY_BUCKETS,
    ),
    _metric("histogram", "request_queue_time_seconds", "Arrival to dispatch to a worker.", buckets=FINE_BUCKETS),
)
"""Every metric of ours; process_* and python_* of prometheus_client come beside them."""

ENDPOINTS = frozenset(
    {
        "/",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{id}",
        "/tokenize",
        "/detokenize",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/version",
    }
)
"""What `endpoint` may be, beside "other"."""
GENERATES = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
"""Endpoints whose times are the service's latency; the others would only flatter it."""
REASONS = (
    "rate_limit",
    "quota",
    "queue_full",
    "predicted_wait",
    "deadline",
    "breaker_open",
    "draining",
    "no_worker",
    "too_large",
    "unauthorized",
)
"""What `reason` of a rejection may be, beside "other"."""
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
