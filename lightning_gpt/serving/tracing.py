"""OpenTelemetry traces of requests, made of their records once they have ended: nothing is done while they run.

A span for the request, continuing the client's trace (W3C traceparent), and in it one for each stretch of its time:
queue, prefill (to the first token) and decode; an answer that is sent whole has "generate" for the last two. Attributes
are those of the semantic conventions for generative AI; prompts and answers are not among them.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from lightning_gpt.serving.metric_table import GENERATES
from lightning_gpt.serving.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "lightning_gpt"
_OPERATIONS = dict(zip(GENERATES, ("text_completion", "chat", "embeddings")))


class Tracer:
    """Makes spans of finished requests: some 0.1 ms of the event loop for each that is kept, 7 us for the others, so
    a busy service keeps a share.

    Args:
        provider: where they go; the tracer closes it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("lightning_gpt.serving")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, record: RequestRecord) -> None:
        """Makes the spans of a request that has ended (`finished` is set); of endpoints that generate, no others."""
        if record.endpoint not in _OPERATIONS:
            return
        from opentelemetry import trace

        assert record.finished is not None, "finished is set before a request is traced"
        context = None
        if record.traceparent is not None:  # a malformed one begins a new trace
            context = self._propagator.extract({"traceparent": record.traceparent})
        began = time.time_ns() - round(1e9 * time.monotonic())  # when the clock of records stood at 0
        operation = _OPERATIONS[record.endpoint]
        span = self._tracer.start_span(
            f"{operation} {record.model}".strip(),
            context,
            trace.SpanKind.SERVER,
            start_time=began + round(1e9 * record.received),
        )
        if span.is_recording():
            span.set_attributes(_attributes(record, operation))
            if record.status >= 500 or _broken(record):
                span.set_status(trace.StatusCode.ERROR)
            inside = trace.set_span_in_context(span)
            for name, start, end in _stretches(record):
                child = self._tracer.start_span(name, inside, start_time=began + round(1e9 * start))
                child.end(began + round(1e9 * end))
        span.end(began + round(1e9 * record.finished))

    def close(self, timeout_s: float = 2.0) -> None:
        """Sends what waits, for no longer than this: a collector that is gone must not hold the end up."""
        closing = threading.Thread(target=self._provider.shutdown, name="close traces", daemon=True)
        closing.start()
        closing.join(timeout_s)


def open_tracer(endpoint: str, sample: float = 1.0) -> Tracer:
    """A tracer that sends to an OpenTelemetry collector over HTTP, in batches, from a thread of its own.

    Args:
        endpoint: URL such as http://localhost:4318/v1/traces.
        sample: share of the requests to trace, 0 to 1; who sends a traceparent decides for itself.

    Raises:
        ValueError: the packages are missing, or a setting cannot be.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"tracing.endpoint={endpoint} must be a URL such as http://localhost:4318/v1/traces")
    if not 0.0 <= sample <= 1.0:
        raise ValueError(f"tracing.sample={sample:g} must be between 0 and 1")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        needed = "tracing.endpoint needs the extra trace: pip install 'lightning_gpt[trace]'"
        raise ValueError(f"{needed} ({error})") from None
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sample), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=5)))
    return Tracer(provider)


def _broken(record: RequestRecord) -> bool:
    """A stream that failed after its headers had gone."""
    return record.status < 400 and record.code is not None


def _attributes(record: RequestRecord, operation: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": SERVICE_NAME,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.request.method": record.method,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "lightning_gpt.request_id": record.request_id,
        "lightning_gpt.version": record.version,
        "lightning_gpt.tenant": record.tenant,
        "lightning_gpt.stream": record.stream,
        "lightning_gpt.retries": record.retries,
        "lightning_gpt.degraded": record.degraded,
        "lightning_gpt.cached": record.cached,
    }
    if record.finish_reason is not None:
        found["gen_ai.response.finish_reasons"] = [record.finish_reason]
    if record.code is not None or record.status >= 500:
        found["error.type"] = record.code or str(record.status)
    return found


def _stretches(record: RequestRecord) -> list[tuple[str, float, float]]:
    """(name, start, end) in seconds of the record's clock."""
    assert record.finished is not None
    if record.dispatched is None:
        return []
    found = [("queue", record.received, record.dispatched)]
    if record.first_token is None:
        found.append(("generate", record.dispatched, record.finished))
    else:
        found.append(("prefill", record.dispatched, record.first_token))
        found.append(("decode", record.first_token, record.finished))
    return found
