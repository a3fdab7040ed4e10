import ast
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from lightning_gpt.serving import metrics as metrics_module
from lightning_gpt.serving.metric_table import EACH, METRICS, REASONS
from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.record import RequestRecord, WorkerStats


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.add("tiny", "v1")
    return metrics


def record(**given):
    usual = {"request_id": "r", "endpoint": "/v1/completions", "model": "tiny", "version": "v1", "status": 200}
    return RequestRecord(**{**usual, "received": 100.0, "finished": 100.3, **given})


def samples(metrics):
    """(name, labels without empty ones) -> value, as a scraper reads them."""
    kind, body = metrics.text()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def value(metrics, name, **labels):
    if not name.startswith("admission_"):
        labels = {"version": "v1", **labels}
    return samples(metrics).get((f"lightning_gpt_{name}", *sorted({"model": "tiny", **labels}.items())))


def test_a_known_version_shows_every_metric_of_the_table_from_zero(metrics):
    kinds, labels, values = {}, {}, {}
    for family in parse(metrics.text()[1].decode()):
        for sample in family.samples:
            if sample.name.startswith("lightning_gpt_"):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                kinds[name] = family.type
                labels.setdefault(name, set()).update(sample.labels)
                values.setdefault(name, set()).add(sample.value)
    assert kinds == {one.name: one.kind for one in METRICS}
    for one in METRICS:
        assert labels[one.name] - {"le"} == set(one.labels), one
        assert values[one.name] == {0.0}, one
    names = {sample[0] for sample in samples(metrics)}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= names
    assert not [name for name in names if name.endswith("_created")]


def test_the_table_is_what_dashboards_expect():
    names = [one.name for one in METRICS]
    assert len(names) == len(set(names)) == 30
    for one in METRICS:
        assert one.name.startswith("lightning_gpt_") and one.help.endswith(".")
        assert (one.kind == "counter") == one.name.endswith("_total")
        assert bool(one.buckets) == (one.kind == "histogram") and list(one.buckets) == sorted(set(one.buckets))
    ends = next(one for one in METRICS if one.name.endswith("e2e_request_latency_seconds"))
    assert ends.buckets == (
        0.005,
        0.01,
        0.025,
        0.05,
        0.075,
        0.1,
        0.15,
        0.2,
        0.25,
        0.3,
        0.4,
        0.5,
        0.75,
        1,
        2.5,
        5,
        10,
        30,
    )
    assert sum(one.labels == EACH for one in METRICS) == 27


def test_two_services_share_nothing(metrics):
    other = Metrics()
    other.add("tiny", "v1")
    metrics.finished(record())
    assert value(metrics, "http_requests_total", endpoint="/v1/completions", code="200") == 1
    assert value(other, "http_requests_total", endpoint="/v1/completions", code="200") == 0


def test_a_streamed_answer_fills_all_histograms(metrics):
    metrics.finished(
        record(
            stream=True,
            dispatched=100.02,
            first_token=100.1,
            completion_tokens=5,
            finish_reason="length",
        )
    )
    for name, seconds in (
        ("request_queue_time_seconds", 0.02),
        ("time_to_first_token_seconds", 0.1),
        ("inter_token_latency_seconds", 0.05),
        ("e2e_request_latency_seconds", 0.3),
    ):
        assert value(metrics, f"{name}_count") == 1
        assert value(metrics, f"{name}_sum") == pytest.approx(seconds)
    assert value(metrics, "e2e_request_latency_seconds_bucket", le="0.25") == 0
    assert value(metrics, "e2e_request_latency_seconds_bucket", le="0.4") == 1
    assert value(metrics, "request_success_total", finished_reason="length") == 1


def test_failures_leave_the_latency_alone_and_a_broken_stream_is_one(metrics):
    metrics.finished(record(status=500, code="internal_error"))
    metrics.finished(record(status=499, completion_tokens=3, first_token=100.1))
    metrics.finished(record(stream=True, code="worker_died", first_token=100.1, completion_tokens=2))
    metrics.finished(record(stream=True, code="deadline_exceeded", first_token=100.1, completion_tokens=2))
    metrics.finished(record(endpoint="/v1/models"))
    for code, times in (("500", 2), ("499", 1), ("504", 1), ("200", 0)):
        assert value(metrics, "http_requests_total", endpoint="/v1/completions", code=code) == times
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
    assert value(metrics, "client_disconnects_total") == 1
    assert value(metrics, "request_success_total", finished_reason="stop") == 0


def test_retries_and_the_cache(metrics):
    metrics.finished(record(retries=2, finish_reason="stop"))
    metrics.finished(record(cached=True, finish_reason="stop"))
    metrics.cache_missed("tiny", "v1")
    assert value(metrics, "request_retries_total") == 2
    assert value(metrics, "response_cache_hits_total") == value(metrics, "response_cache_misses_total") == 1


def test_clients_cannot_make_series(metrics):
    before = len(samples(metrics))
    draw = random.Random(0)
    for number in range(300):
        name = f"model-{number}-{draw.random()}"
        metrics.finished(
            record(model=name, version=name, endpoint=f"/{name}", status=404, finish_reason=name, code=name)
        )
        metrics.finished(record(version=name, finish_reason=name))
        metrics.finished(record(status=1000 + number))
        metrics.rejected(name, name)
        metrics.rejected("tiny", name)
    assert len(samples(metrics)) <= before + 60
    assert value(metrics, "http_requests_total", endpoint="other", code="404", model="", version="") == 300
    assert value(metrics, "admission_rejections_total", model="", reason="other") == 300


def test_every_reason_and_the_codes_of_errors_count(metrics):
    for reason in REASONS:
        metrics.rejected("tiny", reason)
    for code in ("rate_limit_exceeded", "insufficient_quota", "deadline_exceeded", "invalid_api_key"):
        metrics.rejected("tiny", code)
    for reason in REASONS:
        twice = reason in ("rate_limit", "quota", "deadline", "unauthorized")
        assert value(metrics, "admission_rejections_total", reason=reason) == 1 + twice, reason


def test_what_was_admitted_is_no_rejection_and_what_was_no_request_is_counted(metrics):
    metrics.rejected("tiny", "worker_died")
    assert not any(count for key, count in samples(metrics).items() if "rejections" in key[0])
    metrics.turned_away(431, "headers_too_large")
    metrics.turned_away(408, "request_timeout")
    metrics.turned_away(503, "too_many_connections")
    for code in ("431", "408", "503"):
        assert value(metrics, "http_requests_total", endpoint="other", code=code, model="", version="") == 1
    assert value(metrics, "admission_rejections_total", model="", reason="too_large") == 1
    assert value(metrics, "admission_rejections_total", model="", reason="queue_full") == 1


def test_every_refusal_of_the_service_has_a_reason(metrics):
    """Codes of errors with these statuses, read from the source."""
    sources = (Path(metrics_module.__file__).parent).glob("*.py")
    codes = set()
    for call in (node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "ApiError" and call.args):
            continue
        status, places = call.args[0], {word.arg: word.value for word in call.keywords}
        code = call.args[3] if len(call.args) > 3 else places.get("code")
        refused = isinstance(status, ast.Constant) and status.value in (401, 413, 429, 431, 503, 504)
        if refused and isinstance(code, ast.Constant):
            codes.add(code.value)
    assert {"queue_full", "invalid_api_key", "no_worker"} <= codes
    for code in codes:
        metrics.rejected("tiny", code)
    assert value(metrics, "admission_rejections_total", reason="other") is None


def test_counts_of_workers_add_up_over_restarts(metrics):
    """Three replicas that count, die and come back at random: the counter is the sum of all that was reported."""
    draw, expected = random.Random(1), 0
    last: dict[str, WorkerStats | None] = dict.fromkeys("abc")
    for _ in range(300):
        replica = draw.choice("abc")
        previous = last[replica]
        if previous is not None and draw.random() < 0.1:
            metrics.gone("tiny", "v1", replica)
            last[replica] = None
            continue
        grown = draw.randint(0, 50)
        done = previous or WorkerStats()
        stats = WorkerStats(
            steps=done.steps + 1,
            generated_tokens=done.generated_tokens + grown,
            prompt_tokens=done.prompt_tokens + 2 * grown,
            busy_s=done.busy_s + 0.1,
        )
        expected += grown
        metrics.worker("tiny", "v1", replica, stats, previous, 0.5)
        last[replica] = stats
    assert value(metrics, "generation_tokens_total") == expected
    assert value(metrics, "prompt_tokens_total") == 2 * expected


def test_a_worker_begun_anew_is_seen_from_its_counts(metrics):
    metrics.worker("tiny", "v1", "0", WorkerStats(steps=90, generated_tokens=70, busy_s=4), None, 10)
    old = WorkerStats(steps=90, generated_tokens=70, busy_s=4)
    metrics.worker("tiny", "v1", "0", WorkerStats(steps=2, generated_tokens=8, busy_s=0.1), old, 0.5)
    assert value(metrics, "generation_tokens_total") == 78
    assert value(metrics, "worker_utilization") == pytest.approx(0.2)


def test_gauges_are_of_all_replicas_and_leave_with_them(metrics):
    one = WorkerStats(running=3, waiting=1, max_running=4, cache_use=0.5, steps=1, busy_s=0.4, resident_bytes=100)
    two = WorkerStats(running=1, waiting=0, max_running=4, cache_use=0.1, steps=1, busy_s=9.0, resident_bytes=50)
    metrics.worker("tiny", "v1", "0", one, None, 1.0)
    metrics.worker("tiny", "v1", "1", two, None, 1.0)
    metrics.queue("tiny", "v1", 7)

    def gauges():
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "batch_occupancy")
        names += ("worker_up", "worker_utilization", "worker_resident_memory_bytes")
        return [value(metrics, name) for name in names]

    assert gauges() == pytest.approx([4, 8, 0.3, 0.5, 2, 0.7, 150])
    metrics.gone("tiny", "v1", "0")
    assert gauges() == pytest.approx([1, 7, 0.1, 0.25, 1, 1.0, 50])
    metrics.gone("tiny", "v1", "1")
    metrics.gone("tiny", "v1", "1")
    assert gauges() == [0, 7, 0, 0, 0, 0, 0]


def test_states_are_numbers(metrics):
    metrics.breaker("tiny", "v1", "half_open")
    metrics.degraded("tiny", "v1", True)
    metrics.weight("tiny", "v1", 0.9)
    metrics.predicted_wait("tiny", "v1", 0.25)
    metrics.restarted("tiny", "v1")
    metrics.rolled_back("tiny", "v1")
    values = [value(metrics, name) for name in ("breaker_state", "degraded", "version_weight")]
    values += [value(metrics, name) for name in ("predicted_wait_seconds", "worker_restarts_total", "rollbacks_total")]
    assert values == [1, 1, 0.9, 0.25, 1, 1]


def test_an_unloaded_version_takes_its_series_along(metrics):
    empty = len(samples(Metrics()))
    metrics.add("tiny", "v2")
    metrics.worker("tiny", "v2", "0", WorkerStats(running=1, steps=1), None, 1.0)
    metrics.finished(record(version="v2", finish_reason="stop"))
    metrics.forget("tiny", "v2")
    assert not [key for key in samples(metrics) if ("version", "v2") in key]
    assert value(metrics, "worker_up") == 0
    metrics.rejected("tiny", "quota")
    metrics.forget("tiny", "v1")
    assert len(samples(metrics)) == empty
    metrics.finished(record())
    assert value(metrics, "http_requests_total", endpoint="/v1/completions", code="200", model="", version="") == 1


def test_openmetrics_for_who_asks(metrics):
    metrics.finished(record(finish_reason="stop"))
    kind, body = metrics.text("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(body.decode())} >= {"lightning_gpt_http_requests"}
    assert metrics.text("text/plain;version=nonsense")[0].startswith("text/plain")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is Debian's package prometheus")
def test_promtool_reads_it(metrics):
    metrics.finished(record(finish_reason="stop"))
    own = b"\n".join(line for line in metrics.text()[1].splitlines() if b"lightning_gpt_" in line) + b"\n"
    found = subprocess.run(["promtool", "check", "metrics"], input=own, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
