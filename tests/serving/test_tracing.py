import itertools
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode

from lightning_gpt.serving.record import RequestRecord
from lightning_gpt.serving.tracing import Tracer, open_tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced(share=1.0):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(provider), exporter


def record(**given):
    now = time.monotonic()
    usual = {"request_id": "r", "endpoint": "/v1/chat/completions", "model": "tiny", "version": "v1", "status": 200}
    times = {"received": now - 1.0, "dispatched": now - 0.9, "finished": now}
    return RequestRecord(**{**usual, **times, **given})


def test_a_streamed_request_has_a_span_for_each_stretch_of_its_time():
    tracer, exporter = traced()
    one = record(
        stream=True, prompt_tokens=11, completion_tokens=5, finish_reason="stop", traceparent=PARENT, tenant="acme"
    )
    one.first_token = one.received + 0.4
    before = time.time()
    tracer.request(one)
    *children, span = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("chat tiny", SpanKind.SERVER)
    assert span.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert span.parent.span_id == 0xB7AD6B7169203331
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("stop",),
        "http.response.status_code": 200,
        "lightning_gpt.tenant": "acme",
    }
    assert expected.items() <= dict(span.attributes).items()
    assert span.status.status_code is StatusCode.UNSET and "error.type" not in span.attributes
    assert [child.name for child in children] == ["queue", "prefill", "decode"]
    edges = [span.start_time, *(child.end_time for child in children)]
    assert [child.start_time for child in children] == edges[:-1] and edges[-1] == span.end_time
    assert [round((end - start) / 1e9, 3) for start, end in itertools.pairwise(edges)] == [0.1, 0.3, 0.6]
    assert abs(span.end_time / 1e9 - before) < 1
    assert all(child.parent.span_id == span.context.span_id for child in children)
    assert {child.context.trace_id for child in children} == {span.context.trace_id}


def test_an_answer_sent_whole_and_one_refused():
    tracer, exporter = traced()
    tracer.request(record(endpoint="/v1/completions"))
    assert [span.name for span in exporter.get_finished_spans()] == ["queue", "generate", "text_completion tiny"]
    exporter.clear()
    tracer.request(record(status=429, code="queue_full", dispatched=None, model=""))
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat" and span.attributes["error.type"] == "queue_full"
    assert span.status.status_code is StatusCode.UNSET  # the client's fault, by the conventions


@pytest.mark.parametrize("failed", [{"status": 503, "code": "no_worker"}, {"code": "worker_died"}, {"status": 500}])
def test_failures_of_the_service_are_errors(failed):
    tracer, exporter = traced()
    tracer.request(record(**failed))
    span = exporter.get_finished_spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == (failed.get("code") or "500")


@pytest.mark.parametrize("wrong", ["", "00-abc", PARENT.replace("7", "x"), "00-" + "0" * 32 + PARENT[35:], "é" * 55])
def test_a_malformed_parent_begins_a_new_trace(wrong):
    tracer, exporter = traced()
    tracer.request(record(traceparent=wrong))
    assert exporter.get_finished_spans()[-1].parent is None


def test_the_client_decides_whether_its_trace_is_kept():
    tracer, exporter = traced(share=0.0)
    tracer.request(record())
    assert not exporter.get_finished_spans()
    tracer.request(record(traceparent=PARENT))
    assert len(exporter.get_finished_spans()) == 3
    tracer, exporter = traced(share=1.0)
    tracer.request(record(traceparent=PARENT[:-2] + "00"))
    tracer.request(record(endpoint="/metrics"))
    assert not exporter.get_finished_spans()


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"tracing.endpoint=localhost:4318 must be a URL"):
        open_tracer("localhost:4318")
    with pytest.raises(ValueError, match=r"tracing.sample=2 must be between"):
        open_tracer("http://localhost:4318", sample=2)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning_gpt\[trace\]'"):
        open_tracer("http://localhost:4318/v1/traces")


def test_spans_reach_a_collector():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra trace")
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracer = open_tracer(f"http://127.0.0.1:{server.server_port}/v1/traces")
    tracer.request(record(finish_reason="stop"))
    tracer.close(10)
    server.shutdown()
    server.server_close()
    ((path, body),) = got
    assert path == "/v1/traces"
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = [span.name for span in sent.scope_spans[0].spans]
    assert names == ["queue", "generate", "chat tiny"]
    assert any(item.key == "service.name" and item.value.string_value for item in sent.resource.attributes)
