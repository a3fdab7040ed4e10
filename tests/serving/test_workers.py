"""Workers that die, hang and are told to end, and clients that go away."""

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from service_process import ServiceProcess


def workers(service):
    """Processes of the workers, the oldest first."""
    children = psutil.Process(service.process.pid).children()
    return sorted((one for one in children if one.status() != "zombie"), key=lambda one: one.create_time())


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, model_directory):
    """One worker that serves and one that stands by."""
    version = {"path": str(model_directory), "threads": 1, "standby": 1, "max_running": 4}
    settings = {"models": [{"name": "tiny", "versions": [version]}], "heartbeat_s": 2.0}
    running = ServiceProcess(tmp_path_factory.mktemp("pair"), settings)
    yield running
    running.close()


def ask(service, prompt, **more):
    asked = {"prompt": prompt, "max_tokens": 200, "temperature": 0, **more}
    status, body = service.post("/v1/completions", asked)
    return status, body["choices"][0]["text"] if status == 200 else body


def test_what_a_dead_worker_had_is_answered_by_another(pair):
    prompts = [f"{number} bottles" for number in range(12)]  # more than a worker takes: some wait in the gateway
    expected = [ask(pair, prompt) for prompt in prompts]
    first = workers(pair)[0]
    with ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(ask, pair, prompt) for prompt in prompts]
        until(lambda: pair.metric("lightning_gpt_num_requests_running") > 0 or all(one.done() for one in answers))
        first.send_signal(signal.SIGKILL)
        assert [one.result() for one in answers] == expected
    until(lambda: len(workers(pair)) == 2)
    until(lambda: pair.metric("lightning_gpt_worker_restarts_total") >= 1)
    assert pair.ready()


def events(service, body):
    """The events of a stream, as they come: time of arrival, and content."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:]) if line[6:].strip() != b"[DONE]" else None
    connection.close()


def test_a_stream_that_breaks_says_so(pair):
    until(lambda: len(workers(pair)) == 2 and pair.metric("lightning_gpt_worker_up") == 2)
    first = workers(pair)[0]
    seen = []
    for event in events(pair, {"prompt": "on", "max_tokens": 4000, "seed": 1, "stream": True, "ignore_eos": True}):
        seen.append(event)
        if len(seen) == 3:
            first.send_signal(signal.SIGKILL)
    assert seen[-1] is None and seen[-2]["error"]["code"] == "worker_died"
    assert all("choices" in event for event in seen[:-2])


def test_a_worker_that_hangs_is_replaced(pair):
    until(lambda: len(workers(pair)) == 2 and pair.metric("lightning_gpt_worker_up") == 2)
    expected = ask(pair, "hang")
    first = workers(pair)[0]
    first.send_signal(signal.SIGSTOP)
    assert ask(pair, "hang") == expected
    until(lambda: not first.is_running() or first.status() == "zombie")


def test_a_client_that_goes_away_frees_its_place(pair):
    until(lambda: pair.metric("lightning_gpt_num_requests_running") == 0)
    body = {"prompt": "on", "max_tokens": 4000, "seed": 1, "ignore_eos": True}
    for stream in (False, True):
        connections = []
        for _ in range(6):
            connection = http.client.HTTPConnection("127.0.0.1", pair.port, timeout=60)
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": stream}))
            connections.append(connection)
        until(lambda: pair.metric("lightning_gpt_num_requests_running") == 4)
        for connection in connections:
            connection.close()
        until(lambda: pair.metric("lightning_gpt_num_requests_running") == 0, 5.0)
    assert pair.metric("lightning_gpt_client_disconnects_total") == 12


def test_a_deadline_ends_a_request(pair):
    body = {"prompt": "on", "max_tokens": 4000, "seed": 1, "ignore_eos": True}
    started = time.monotonic()
    status, answer = pair.post("/v1/completions", body, **{"x-request-timeout": "0.3"})
    assert status == 408 and answer["error"]["code"] == "client_deadline" and time.monotonic() - started < 5
    status, answer = pair.post("/v1/completions", body, **{"x-request-timeout": "soon"})
    assert status == 400 and "X-Request-Timeout='soon'" in answer["error"]["message"]
    until(lambda: pair.metric("lightning_gpt_num_requests_running") == 0, 5.0)


def test_a_drain_finishes_what_is_under_way(tmp_path, model_directory):
    version = {"path": str(model_directory), "threads": 1, "max_running": 2}
    settings = {"models": [{"name": "tiny", "versions": [version]}], "drain_delay_s": 0.5}
    running = ServiceProcess(tmp_path, settings)
    expected = [ask(running, str(number)) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, running, str(number)) for number in range(8)]
        until(lambda: running.metric("lightning_gpt_num_requests_running") > 0 or all(one.done() for one in answers))
        running.process.send_signal(signal.SIGTERM)
        assert [one.result() for one in answers] == expected
    pids = [one.pid for one in workers(running)]
    assert running.process.wait(20) == 0
    assert not any(map(psutil.pid_exists, pids))


def test_workers_end_with_a_gateway_that_is_killed(tmp_path, model_directory):
    settings = {"models": [{"name": "tiny", "versions": [{"path": str(model_directory), "threads": 1}]}]}
    running = ServiceProcess(tmp_path, settings)
    (worker,) = workers(running)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    until(lambda: not worker.is_running() or worker.status() == "zombie", 10.0)
