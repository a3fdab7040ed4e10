"""What the service knows of one request, filled in as it goes; metrics, logs and traces are made from it.

Times are seconds of time.monotonic(); texts of prompts and answers, and keys, are never part of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request from its first byte to its last."""

    request_id: str
    endpoint: str
    """Route, such as /v1/completions; "other" for what is no route."""
    method: str = "POST"
    model: str = ""
    version: str = ""
    tenant: str = ""
    stream: bool = False
    received: float = field(default_factory=time.monotonic)
    dispatched: float | None = None
    """When it was sent to a worker: the end of its time in the queue."""
    first_token: float | None = None
    """When the first token came from the worker; None where the answer is sent whole."""
    finished: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    """HTTP status; 499 = the client went away before the end."""
    code: str | None = None
    """`code` of the error, if it failed: the reason of a rejection."""
    finish_reason: str | None = None
    retries: int = 0
    """Times that it was given to another worker, as its worker had died."""
    degraded: bool = False
    cached: bool = False
    traceparent: str | None = None
    """W3C trace context that the client sent."""


@dataclass(slots=True)
class WorkerStats:
    """A snapshot that a worker sends about twice a second; counts run from the worker's beginning."""

    running: int = 0
    waiting: int = 0
    max_running: int = 1
    cache_use: float = 0.0
    """Share of the key/value blocks that are held, 0 to 1."""
    steps: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    busy_s: float = 0.0
    """Seconds spent in steps."""
    resident_bytes: int = 0
