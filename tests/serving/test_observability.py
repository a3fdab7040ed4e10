"""What a running service tells of itself: every request is counted and logged once, and nobody's words are kept."""

import http.client
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_process import ServiceProcess

from lightning_gpt.serving.json_logs import EVENTS, REQUEST_FIELDS
from lightning_gpt.serving.metric_table import METRICS

KEY = "sk-lgpt-topsecret0123456789"
PROMPT = "the combination of the safe is 4711"
TWO = {"replicas": 1, "standby": 1, "threads": 1, "max_running": 8}


@pytest.fixture(scope="module")
def running(tmp_path_factory, model_directory):
    models = [{"name": "tiny", "versions": [{"path": str(model_directory), **TWO}]}]
    service = ServiceProcess(tmp_path_factory.mktemp("observed"), {"models": models, "drain_s": 5})
    yield service
    service.close()


def samples(service):
    found = {}
    for family in text_string_to_metric_families(service.get("/metrics")[1].decode()):
        for sample in family.samples:
            found[sample.name.removeprefix("lightning_gpt_"), *sorted(sample.labels.items())] = sample.value
    return found


def grown(before, after, name, **labels):
    """By how much all series of a metric with these labels have grown."""

    def total(values):
        return sum(v for (key, *pairs), v in values.items() if key == name and labels.items() <= dict(pairs).items())

    return total(after) - total(before)


def eventually(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def lines(service):
    return [json.loads(line) for line in service.log.read_text().splitlines()]


def line_of(service, request_id):
    """The one line of a request."""

    def found():
        return [line for line in lines(service) if line.get("request_id") == request_id and line["event"] == "request"]

    eventually(found)
    (line,) = found()
    return line


def ask(service, request_id, **body):
    usual = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "ignore_eos": True, "temperature": 0}
    headers = {"x-request-id": request_id, "authorization": f"Bearer {KEY}"}
    return service.post("/v1/completions", {**usual, **body}, **headers)


def streamed(service, request_id, stop_after=None, **body):
    """Events of a stream; the client goes away after some."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    usual = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "ignore_eos": True, "stream": True}
    headers = {"content-type": "application/json", "x-request-id": request_id, "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", json.dumps({**usual, **body}), headers)
    answer, events = connection.getresponse(), []
    while line := answer.readline():
        if line.startswith(b"data: {"):
            events.append(json.loads(line[6:]))
        if stop_after is not None and len(events) >= stop_after:
            answer.fp.raw._sock.shutdown(socket.SHUT_RDWR)
            break
    connection.close()
    return events


def test_every_metric_of_the_table_is_there_before_the_first_request(running):
    kinds = {}
    for family in text_string_to_metric_families(running.get("/metrics")[1].decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kinds[name] = family.type
    eventually(lambda: running.metric("lightning_gpt_worker_up") == 2)
    assert {one.name: one.kind for one in METRICS}.items() <= kinds.items()
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= kinds.keys()
    assert running.metric("lightning_gpt_worker_resident_memory_bytes") > 2 * 50e6


def test_requests_are_counted_and_logged_as_they_were_answered(running):
    before = samples(running)
    status, whole = ask(running, "whole-1")
    assert status == 200
    events = streamed(running, "stream-1", stream_options={"include_usage": True})
    refused, _ = ask(running, "bad-1", temperature=-1)
    unknown, _ = ask(running, "unknown-1", model="nobody-here")
    assert (refused, unknown) == (400, 404)
    tokens = whole["usage"]["completion_tokens"] + events[-1]["usage"]["completion_tokens"]

    def counted():
        after = samples(running)
        return after if grown(before, after, "generation_tokens_total") >= tokens else None

    after = eventually(counted)
    own = {"endpoint": "/v1/completions"}
    for code, times in (("200", 2), ("400", 1), ("404", 1)):
        assert grown(before, after, "http_requests_total", code=code, **own) == times, code
    assert grown(before, after, "http_requests_total", code="404", model="") == 1
    assert grown(before, after, "generation_tokens_total") == tokens == 12
    prompts = whole["usage"]["prompt_tokens"] + events[-1]["usage"]["prompt_tokens"]
    assert grown(before, after, "prompt_tokens_total") == prompts
    assert grown(before, after, "request_success_total", finished_reason="length") == 2
    for name, times in (
        ("e2e_request_latency_seconds_count", 2),
        ("request_queue_time_seconds_count", 2),
        ("time_to_first_token_seconds_count", 1),
        ("inter_token_latency_seconds_count", 1),
    ):
        assert grown(before, after, name) == times, name
    for request_id, status, stream in (("whole-1", 200, False), ("stream-1", 200, True)):
        line = line_of(running, request_id)
        assert tuple(line) == REQUEST_FIELDS
        assert (line["status"], line["stream"], line["model"], line["version"]) == (status, stream, "tiny", "v1")
        assert (line["prompt_tokens"], line["completion_tokens"]) == (len(PROMPT), 6)
        assert line["finish_reason"] == "length" and 0 <= line["queue_ms"] <= line["duration_ms"]
        assert (line["ttft_ms"] is not None) == stream
    assert line_of(running, "bad-1")["level"] == "warning"
    assert line_of(running, "unknown-1")["code"] == "model_not_found"


def test_a_client_that_goes_away_is_counted_and_its_place_is_free(running):
    before = samples(running)
    streamed(running, "gone-1", stop_after=2, max_tokens=4000)
    after = eventually(lambda: now if grown(before, now := samples(running), "client_disconnects_total") else None)
    assert grown(before, after, "http_requests_total", code="499") == 1
    assert grown(before, after, "e2e_request_latency_seconds_count") == 0
    assert line_of(running, "gone-1")["status"] == 499
    eventually(lambda: running.metric("lightning_gpt_num_requests_running") == 0)
    assert running.metric("lightning_gpt_generation_tokens_total") < 4000


@pytest.mark.slow
def test_counters_go_on_when_a_worker_dies(running):
    before = samples(running)
    pids = {line["worker"]: line["pid"] for line in lines(running) if line["event"] == "worker_ready"}
    ask(running, "early-1", max_tokens=300)
    eventually(lambda: grown(before, samples(running), "generation_tokens_total") >= 300)
    middle = samples(running)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    eventually(lambda: running.metric("lightning_gpt_worker_restarts_total") >= 1)
    eventually(lambda: running.metric("lightning_gpt_worker_up") == 2, seconds=90)
    assert ask(running, "after-1")[0] == 200
    after = eventually(lambda: now if grown(middle, now := samples(running), "generation_tokens_total") >= 6 else None)
    assert grown(middle, after, "generation_tokens_total") == 6
    fallen = [key for key, value in middle.items() if re.search("_total$|_bucket$", key[0]) and after[key] < value]
    assert not fallen
    died = [line for line in lines(running) if line["event"] == "worker_died"]
    assert len(died) == 1 and died[0]["level"] == "warning" and died[0]["worker"] in pids


def test_neither_keys_nor_words_are_kept_even_in_errors(running):
    mistakes = [
        {"temperature": PROMPT},
        {"max_tokens": 10**6},
        {"prompt": PROMPT * 400},
        {"stop": [PROMPT] * 50},
        {"logit_bias": {PROMPT: 1}},
        {"prompt": {"text": PROMPT}},
        {PROMPT: 1},
    ]
    for number, mistake in enumerate(mistakes):
        assert ask(running, f"mistake-{number}", **mistake)[0] == 400, mistake
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", "/v1/completions", f'{{"prompt": "{PROMPT}', {"authorization": f"Bearer {KEY}"})
    assert connection.getresponse().status == 400
    connection.close()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}
    running.post("/v1/chat/completions", chat, **{"x-request-id": "chat-1", "authorization": f"Bearer {KEY}"})
    line_of(running, "chat-1")
    kept = running.log.read_text() + running.output.read_text() + running.get("/metrics")[1].decode()
    assert "4711" not in kept and "combination" not in kept
    assert KEY not in kept and "topsecret" not in kept


def test_what_never_became_a_request_is_counted(running):
    before = samples(running)
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")
        assert b" 431 " in connection.recv(1000)
    after = samples(running)
    assert grown(before, after, "http_requests_total", code="431", endpoint="other") == 1
    assert grown(before, after, "admission_rejections_total", reason="too_large") == 1


def test_openmetrics_is_spoken(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("GET", "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("application/openmetrics-text; version=1.0.0")
    assert answer.read().endswith(b"# EOF\n")
    connection.close()


def test_the_end_is_told(running):
    """Last: it ends the service."""
    assert running.close() == 0
    events = [line["event"] for line in lines(running)]
    assert events[0] == "started" and events[-2:] == ["draining", "stopped"]
    assert {*events} <= {*EVENTS, "request"}


def test_every_event_in_the_code_is_named():
    sources = (Path(__file__).parents[2] / "lightning_gpt" / "serving").glob("*.py")
    calls = re.compile(r"event\(\s*\"(\w+)\"(?: if .* else \"(\w+)\")?")
    found = {word for path in sources for call in calls.findall(path.read_text()) for word in call if word}
    assert {"started", "worker_died", "degradation"} <= found <= set(EVENTS)


@pytest.fixture
def collector():
    """An OpenTelemetry collector that keeps what it is sent."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_requests_are_traced_for_who_asks(model_directory, tmp_path, collector):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra trace")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    endpoint, got = collector
    models = [{"name": "tiny", "versions": [{"path": str(model_directory), "threads": 1}]}]
    service = ServiceProcess(tmp_path, {"models": models, "tracing": {"endpoint": endpoint}, "log": {"requests": 0.0}})
    try:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        status, _ = service.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3}, traceparent=parent)
        assert status == 200
    finally:
        assert service.close() == 0
    spans = [
        span
        for body in got
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in spans] == ["queue", "generate", "text_completion tiny"]
    assert {span.trace_id.hex() for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert b"4711" not in b"".join(got)
