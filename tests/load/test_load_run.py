import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest

from lightning_gpt.load.runner import run_load, run_load_async
from lightning_gpt.load.settings import LoadSettings


def load(server, **settings):
    given = {"model": "tiny", "rate": 100, "duration_s": 0.4, "arrivals": "constant", "timeout_s": 5}
    server.seen.clear()
    return run_load(LoadSettings(server.url, **given | settings))


def test_requests_go_out_when_they_are_due_and_all_are_counted(server):
    found = load(server, model=None, api_keys=("k1", "k2"), request_timeout_s=2)
    assert found.model == "tiny" and found.totals["requests"] == found.totals["ok"] == 40 == len(server.seen)
    assert found.errors == {} and found.totals["error_rate"] == 0 and found.totals["availability"] == 1
    assert found.totals["tokens"] == 160
    assert np.allclose(np.sort(found.samples.due), np.arange(40) / 100, atol=1e-6)
    assert {headers["authorization"] for _, headers, _ in server.seen} == {"Bearer k1", "Bearer k2"}
    assert sum(one["requests"] for one in found.tenants) == 40 and len(found.tenants) == 2
    assert sum(found.series["sent"]) == 40 == sum(found.series["ok"]) and found.series["in_flight"][-1] == 0
    assert (found.samples.lag >= 0).all() and (found.samples.latency >= found.samples.lag).all()


def test_a_stall_shows_in_every_request_that_was_due_in_it(server):
    server.stall = (0.0, 0.5)
    found = load(server, duration_s=1.0)
    due, latency = found.samples.due, found.samples.latency
    stalled = due < 0.4
    assert (latency[stalled] > 0.5 - due[stalled] - 0.05).all()  # what was left of the stall when each was due
    # A client that waits for its answers would see the stall once, and a P90 without it.
    assert found.totals["latency_ms"]["p90"] > 350 and found.totals["requests"] == 100


def test_latency_runs_from_the_intended_time_when_the_client_has_no_connection_left(server):
    server.delay_s = 0.05
    found = load(server, connections=1)
    assert server.connections == 1 and found.totals["ok"] == 40
    assert found.totals["waited_for_connection"] > 30 and found.totals["client_lag_ms"]["p99"] > 500
    assert found.samples.latency.max() > 40 * 0.05 - 0.4  # the last waited for all others
    assert any("1 connections" in one for one in found.warnings)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_streams_are_timed_token_by_token(server, endpoint):
    server.token_s = 0.03
    found = load(server, endpoint=endpoint, stream=1.0, requests=10)
    assert found.totals["ok"] == 10 and found.totals["tokens"] == 40  # of the usage, not the pieces
    assert all(body["stream"] for _, _, body in server.seen)
    ttft, whole = found.samples.ttft, found.samples.latency
    # The server sleeps before each of the two pieces; the role's chunk of a chat is no token.
    assert (ttft >= 0.029).all() and (whole >= 0.058).all() and (whole > ttft).all()
    assert (found.samples.tpot > 0).all() and (found.samples.tpot * 3 <= whole - ttft + 1e-6).all()
    assert 0 < found.totals["itl_ms"]["p50"] <= found.totals["itl_ms"]["max"]


def test_chunked_answers_and_closed_connections_are_taken(server):
    server.chunked = True
    assert load(server, requests=10).totals["ok"] == 10
    before = server.connections
    server.close_after = 1
    assert load(server, requests=10, rate=50).totals["ok"] == 10
    assert server.connections - before >= 10


def test_a_connection_that_the_server_closed_while_idle_costs_no_request(server):
    server.behave = lambda number, headers, body: "close" if number in (3, 6) else None
    found = load(server, requests=10, connections=1)
    assert found.totals["ok"] == 10 and found.totals["sent_again"] == 2 and len(server.seen) == 12
    # A fresh connection that brings nothing is an error: the request may be to blame.
    server.behave = lambda number, headers, body: "close"
    found = load(server, requests=3, connections=1)
    assert found.errors == {"closed": 3} and found.totals["availability"] == 0


def test_errors_are_counted_by_what_they_are(server, whole_answer):
    refusal = whole_answer(b'{"error": {"code": "queue_full"}}', "429 Too Many Requests", "Retry-After: 1\r\n")
    failure = whole_answer(b'{"error": {"type": "server_error", "code": null}}', "500 Internal Server Error")
    broken = whole_answer(b'{"choi')
    cut = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nx"
    wishes = [refusal, refusal, failure, broken, b"SSH-2.0\r\n\r\n", cut]
    server.behave = lambda number, headers, body: wishes[number] if number < len(wishes) else None
    found = load(server, requests=10)
    assert found.errors["429 queue_full"] == 2 and found.errors["500 server_error"] == 1
    assert found.errors["malformed"] == 2 and found.errors["closed"] == 1
    assert found.totals["ok"] == 4 and found.totals["errors"] == 6 and found.totals["error_rate"] == 0.6
    assert found.totals["availability"] == 0.5  # refusals are not failures
    assert found.totals["refusals_with_retry_after"] == 2
    assert found.series["errors_by_kind"]["429 queue_full"][0] == 2 and sum(found.series["errors"]) == 6


def test_streams_that_break_are_errors(server):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    wishes = [
        head + b'data: {"choices": [{"text": "a"}]}\n\n',
        head + b'data: {"error": {"code": "worker_died"}}\n\n',
        head + b"data: {broken\n\ndata: [DONE]\n\n",
    ]
    server.behave = lambda number, headers, body: wishes[number] if number < 3 else None
    found = load(server, requests=6, stream=1.0)
    assert found.errors == {"truncated": 1, "200 worker_died in the stream": 1, "malformed": 1}
    assert found.totals["ok"] == 3


def test_requests_without_an_answer_time_out_and_count_with_the_time_they_waited(server):
    server.behave = lambda number, headers, body: "hang" if number % 5 == 0 else None
    found = load(server, requests=20, timeout_s=1)
    assert found.errors == {"timeout": 4} and found.totals["ok"] == 16
    assert found.totals["latency_ms"]["p90"] >= 1000
    assert any("no answer in 1 s" in one for one in found.warnings)


def test_a_server_that_goes_away_is_counted_as_refusing(server):
    server.close_after = 1
    server.behave = lambda number, headers, body: server.stop_listening() if number == 5 else None
    found = load(server, requests=30, connections=1)
    assert found.errors["refused"] >= 20 and found.totals["ok"] >= 1


def test_a_generator_that_is_held_up_says_so(server):
    settings = LoadSettings(server.url, rate=50, duration_s=1.4, model="tiny")
    found = run_load(settings, lambda second: time.sleep(0.3))
    assert found.totals["client_lag_ms"]["p99"] > 200 and any("was a bottleneck" in one for one in found.warnings)
    # Those that were due meanwhile count from when they were due.
    late = found.samples.lag > 0.1
    assert late.any() and (found.samples.latency[late] > found.samples.lag[late]).all()


def test_nobody_there_is_told_before_the_load(server):
    server.stop()
    with pytest.raises(ConnectionError, match=f"no server at 127.0.0.1:{server.port}"):
        load(server)


def test_a_closed_loop_waits_for_its_answers(server):
    server.delay_s = 0.05
    found = load(server, concurrency=4, requests=24)
    assert found.totals["ok"] == 24 == len(server.seen) and server.connections == 4
    assert max(found.series["in_flight"]) <= 4 and found.totals["latency_ms"]["p50"] >= 50
    times = sorted(at for at, _, _ in server.seen)
    assert times[4] - times[0] >= 0.04  # the fifth waited for an answer


def test_wrong_answers_are_noticed(server):
    found = load(server, check=True, max_tokens="2-3", requests=40, stream=0.5)
    assert found.totals["ok"] == 40 and found.totals["wrong"] == 0
    kinds = {(body["prompt"], body["max_tokens"]) for _, _, body in server.seen}
    assert found.totals["answers_compared_with"] == len(kinds) == len(server.seen) - 40
    first = load(server, check=True, requests=40)
    alone = len(server.seen) - 40
    server.behave = lambda number, headers, body: setattr(
        server, "answer", lambda body: "another" if number >= alone and number % 10 == 0 else f"to {body['prompt']}"
    )
    found = load(server, check=True, requests=40, concurrency=1)
    assert found.errors == {"wrong": found.totals["wrong"]} and found.totals["wrong"] == 4
    assert len(found.wrong_answers) == 4 and {one["got"] for one in found.wrong_answers} == {"another"}
    assert found.totals["ok"] == 36 and any("alone" in one for one in found.warnings)
    assert first.answers is not None and len(first.answers) == 32


def test_answers_of_another_run_are_expected(server, tmp_path):
    load(server, check=True, requests=40).answers.write(tmp_path / "answers.jsonl")
    found = load(server, expect=str(tmp_path / "answers.jsonl"), requests=40)
    assert found.totals["ok"] == 40 == len(server.seen)
    server.answer = lambda body: "another"
    assert load(server, expect=str(tmp_path / "answers.jsonl"), requests=40).totals["wrong"] == 40
    with pytest.raises(ValueError, match="lacks 32 of the 32 different requests"):
        load(server, expect=str(tmp_path / "answers.jsonl"), max_tokens="17")
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 must be"):
        load(server, expect=str(tmp_path / "answers.jsonl"))


def test_steps_have_figures_of_their_own_and_warm_up_counts_in_none(server, whole_answer):
    server.behave = lambda number, headers, body: whole_answer(b"", "503 No") if number < 50 else None
    found = load(server, steps="100:0.5,200:0.5", slo_ms=5000, warmup_s=0.395, connections=1)  # between two requests
    assert [one["requests"] for one in found.steps] == [50, 100]
    assert [one["errors"] for one in found.steps] == [50, 0]
    assert [one["holds"] for one in found.steps] == [False, True]
    assert found.totals["requests"] == 110 and found.errors == {"503": 10}
    assert sum(found.series["sent"]) == 150 and sum(found.series["errors"]) == 50


def test_an_interrupt_ends_the_load_and_leaves_what_was_found(server):
    seconds = []

    def interrupt(second):
        seconds.append(second)
        os.kill(os.getpid(), signal.SIGINT)

    found = run_load(LoadSettings(server.url, rate=50, duration_s=60, model="tiny"), interrupt)
    assert found.stopped and found.seconds < 20 and any("ended early" in one for one in found.warnings)
    assert found.totals["ok"] == found.totals["requests"] > 20 and seconds[0].sent > 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_stopping_twice_does_not_wait_for_answers(server, monkeypatch):
    monkeypatch.setattr("lightning_gpt.load.generator.GRACE_S", 600)
    settings = LoadSettings(server.url, rate=100, duration_s=60, model="tiny")

    def stop_twice(generator):
        loop = asyncio.get_running_loop()

        def behave(number, headers, body):
            if number == 5:
                loop.call_soon_threadsafe(generator.stop)
                loop.call_soon_threadsafe(generator.stop)
            return "hang"

        server.behave = behave

    found = asyncio.run(run_load_async(settings, on_start=stop_twice))
    assert found.totals["cancelled"] == found.totals["requests"] >= 6
    assert found.errors == {} and found.totals["error_rate"] != found.totals["error_rate"]


def test_it_runs_beside_other_coroutines_and_in_other_threads(server):
    async def both():
        settings = LoadSettings(server.url, rate=50, requests=10, model="tiny")
        return await asyncio.gather(run_load_async(settings), run_load_async(settings))

    assert [one.totals["ok"] for one in asyncio.run(both())] == [10, 10]
    found = []
    thread = threading.Thread(target=lambda: found.append(load(server, requests=5)))
    thread.start()
    thread.join()
    assert found[0].totals["ok"] == 5


def test_processes_are_watched(server):
    found = load(server, watch_pids=(os.getpid(),), duration_s=1.2, rate=20)
    assert found.watched and found.watched[0]["rss_bytes"] > 1e6 and found.watched[0]["processes"] >= 1
    with pytest.raises(ValueError, match="no such process"):
        load(server, watch_pids=(2**22 + 5,))


def test_odd_answers_do_not_stop_the_load(server, whole_answer):
    bodies = [
        b'{"choices": [{"text": null}], "usage": {"completion_tokens": -3}}',
        b'{"choices": [{"text": "x"}], "usage": {"completion_tokens": 1e99}}',
        b'{"choices": [{"text": "x"}], "usage": null}',
        b'{"choices": null}',
        b"[]",
        b'"text"',
        b"",
    ]
    server.behave = lambda number, headers, body: (
        whole_answer(bodies[number])
        if number < len(bodies)
        else whole_answer(b'{"error": {"code": "made-up-%d"}}' % number, "500 Oops")
    )
    found = load(server, requests=300, rate=1000)
    assert found.totals["requests"] == 300 and found.totals["tokens"] == 0 and found.totals["ok"] >= 3
    assert sum(found.errors.values()) == 300 - found.totals["ok"] and found.errors["other"] > 50
