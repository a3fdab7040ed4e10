import asyncio
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from lightning_gpt.serving.json_logs import REQUEST_FIELDS, JsonLog, open_log_file, parse_share, route_library_logs
from lightning_gpt.serving.record import RequestRecord

KEY = "sk-lgpt-0123456789abcdef"
PROMPT = "my grandmother's secret recipe"


def record(number=0, **given):
    usual = {"request_id": f"r{number}", "endpoint": "/v1/completions", "model": "tiny", "version": "v1"}
    return RequestRecord(**{**usual, "status": 200, "received": 10.0, "finished": 10.25, **given})


@pytest.fixture
def written(tmp_path):
    """A log in a file, and what stands there once it is closed."""
    path, opened = tmp_path / "log", []

    def make(**given):
        opened.append(JsonLog(open_log_file(path), **given))
        return opened[-1]

    def lines():
        for log in opened:
            log.close()
        return [json.loads(line) for line in path.read_text().splitlines()]

    make.lines, make.path = lines, path
    yield make
    for log in opened:
        log.close()


def test_a_request_is_one_line_with_all_fields(written):
    log = written()
    log.request(
        record(
            tenant="acme",
            stream=True,
            dispatched=10.0105,
            first_token=10.1,
            prompt_tokens=7,
            completion_tokens=3,
            finish_reason="stop",
        )
    )
    (line,) = written.lines()
    assert tuple(line) == REQUEST_FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line["ts"])
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["ts"])).total_seconds()) < 60
    assert (line["level"], line["event"], line["request_id"], line["status"]) == ("info", "request", "r0", 200)
    assert (line["queue_ms"], line["ttft_ms"], line["duration_ms"]) == (10.5, 100.0, 250.0)
    assert (line["tenant"], line["prompt_tokens"], line["completion_tokens"]) == ("acme", 7, 3)
    assert line["code"] is None and line["degraded"] is False


def test_what_is_not_known_is_null_and_levels_follow_the_status(written):
    log = written()
    log.request(record(status=429, code="queue_full"))
    log.request(record(status=500, code="internal_error"))
    log.request(record(status=200, code="worker_died", stream=True))
    log.request(record(status=499))
    lines = written.lines()
    assert [line["level"] for line in lines] == ["warning", "error", "error", "warning"]
    assert lines[0]["queue_ms"] is None and lines[0]["ttft_ms"] is None


@pytest.mark.parametrize(("requests", "low", "high"), [("all", 2000, 2000), ("errors", 0, 0), (0.25, 430, 570)])
def test_successes_are_logged_by_share_and_errors_always(written, requests, low, high):
    log = written(requests=requests)
    for number in range(2000):
        log.request(record(number))
    for number in range(20):
        log.request(record(number, status=503))
    lines = written.lines()
    assert sum(line["status"] == 503 for line in lines) == 20
    assert low <= sum(line["status"] == 200 for line in lines) <= high


def test_a_share_must_be_one():
    assert [parse_share(value) for value in ("all", "errors", "0.5", 0.1)] == [1, 0, 0.5, 0.1]
    for wrong in ("some", "1.5", -1, "nan", None):
        with pytest.raises(ValueError, match="log_requests="):
            parse_share(wrong)


def test_errors_are_written_at_once_and_the_rest_soon(written):
    log = written()
    log.event("breaker", "warning", state="open")
    until = time.monotonic() + 5
    while not written.path.read_text() and time.monotonic() < until:
        time.sleep(0.001)
    log.request(record())
    while written.path.read_text().count("\n") < 2 and time.monotonic() < until:
        time.sleep(0.001)
    assert [json.loads(line)["event"] for line in written.path.read_text().splitlines()] == ["breaker", "request"]


def test_a_reader_that_stands_still_holds_nobody_up_and_losses_are_told():
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    log = JsonLog(writing, capacity=100)
    began = time.monotonic()
    for number in range(5000):
        log.request(record(number))
    for number in range(150):
        log.event("worker_died", worker=number)
    assert time.monotonic() - began < 5  # the pipe takes ten lines; a blocking write would never come back
    assert log.dropped >= 5000 - 300
    found = bytearray()
    os.set_blocking(reading, False)
    closed = False
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            piece = os.read(reading, 65536)
        except BlockingIOError:
            if not closed and not log._lines:
                log.event("stopped", "warning")
                log.close(0)
                closed = True
            time.sleep(0.001)
            continue
        if not piece:
            break
        found += piece
    os.close(reading)
    lines = [json.loads(line) for line in found.splitlines()]
    told = sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped")
    kept = sum(line["event"] == "request" for line in lines)
    assert told == log.dropped
    events = sum(line["event"] == "worker_died" for line in lines)
    assert kept + events + told == 5150 and lines[-1]["event"] == "stopped"
    assert events >= 100  # events of the service have room that requests cannot take


def test_a_reader_that_went_away_and_a_log_that_is_closed_are_no_errors():
    reading, writing = os.pipe()
    os.close(reading)
    log = JsonLog(writing)
    log.event("started")
    log.close()
    log.event("stopped")
    assert log.dropped == 2
    assert not log._thread.is_alive()


def test_a_pipe_in_non_blocking_mode_gets_whole_lines():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    log = JsonLog(writing)
    for number in range(200):
        log.request(record(number))
    with open(reading, "rb") as file:
        lines = [json.loads(file.readline()) for _ in range(200)]
    log.close()
    assert [line["request_id"] for line in lines] == [f"r{number}" for number in range(200)]


def test_keys_and_prompts_stay_out_even_of_errors(written, monkeypatch):
    for attribute in ("handlers", "propagate", "level"):  # put back afterwards
        logger = logging.getLogger("asyncio")
        monkeypatch.setattr(logger, attribute, getattr(logger, attribute))
    log = written()
    route_library_logs(log, ("test.library", "asyncio"))
    log.request(record(), prompt=PROMPT, answer=PROMPT)
    log.event("failure", "error", header=f"Authorization: Bearer {KEY}", query=f"api_key={KEY}", told=f"key {KEY}")
    try:
        raise ValueError(f"cannot encode {PROMPT!r} of {KEY}")
    except ValueError as error:
        log.failure(error, request_id="r1")
        logging.getLogger("test.library").exception("Exception in ASGI application")
    logging.getLogger("test.library").error("refused Bearer %s\n%s", KEY, PROMPT)
    logging.getLogger("test.library").warning("a warning %s", PROMPT)

    async def lost():
        raise RuntimeError(PROMPT)

    async def main():
        task = asyncio.create_task(lost())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    asyncio.run(main())
    lines = written.lines()
    text = written.path.read_text()
    assert KEY not in text and KEY[3:] not in text
    assert "grandmother" not in text and "recipe" not in text
    failures = [line for line in lines if line.get("error") == "ValueError"]
    assert len(failures) == 2 and failures[0]["request_id"] == "r1"
    assert "test_keys_and_prompts_stay_out_even_of_errors" in failures[0]["at"][-1]
    assert [line.get("message") for line in lines if line["event"] == "server"] == ["refused Bearer ***"]
    assert any(line.get("error") == "RuntimeError" and line["logger"] == "asyncio" for line in lines)


def test_prompts_are_written_for_who_asks(written):
    log = written(prompts=True)
    log.request(record(), prompt=PROMPT, answer="no")
    log.failure(ValueError("why"))
    first, second = written.lines()
    assert (first["prompt"], first["answer"], second["message"]) == (PROMPT, "no", "why")


def test_what_is_no_json_is_written_somehow(written):
    log = written()
    log.request(record(request_id="\ud800"))
    log.event("config_reloaded", path=PROMPT[:2], what={1, 2})
    assert [line["event"] for line in written.lines()] == ["request", "config_reloaded"]


def test_lines_are_appended_and_others_cannot_read_them(written):
    written.path.write_text('{"event": "earlier"}\n')
    written().event("started")
    assert [line["event"] for line in written.lines()] == ["earlier", "started"]
    descriptor = open_log_file(written.path.with_name("new"))
    os.close(descriptor)
    assert written.path.with_name("new").stat().st_mode & 0o007 == 0


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"log\.path=.*none/x cannot be written \(No such file or directory\)"):
        open_log_file(tmp_path / "none" / "x")
    with pytest.raises(ValueError, match=r"Is a directory"):
        open_log_file(tmp_path)


def test_a_process_ends_although_nobody_reads_its_log():
    code = (
        "from lightning_gpt.serving.json_logs import JsonLog, open_log_file\n"
        "log = JsonLog(open_log_file('-'))\n"
        "for number in range(5000): log.event('started', text='x' * 100)\n"
        "log.close(0.1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
