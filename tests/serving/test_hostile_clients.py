"""The real service and clients that mean it ill: refused cheaply, in the API's shape, and nobody else notices."""

import json
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress

import psutil
import pytest
import yaml
from raw_http import HOST, answers, connected, error_of, exchange, post, read_all
from service_process import ServiceProcess, small_model

from lightning_gpt.serving.tenants import new_key

HEADER_S, BODY_S = 0.6, 1.0
BODY_BYTES = 64 * 1024
GOOD = {"prompt": "To be", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    path = str(small_model(folder / "model", context=256))
    tenants = {"anonymous": {}, "tenants": [{"name": "known", "key_hashes": [new_key()[1]]}]}
    (folder / "tenants.yaml").write_text(yaml.safe_dump(tenants))
    limits = {
        "max_body_bytes": BODY_BYTES,
        "header_timeout_s": HEADER_S,
        "body_timeout_s": BODY_S,
        "max_connections": 300,
    }
    models = [{"name": "tiny", "chat_template": "plain", "versions": [{"path": path, "threads": 1, "max_running": 8}]}]
    settings = {"models": models, "limits": limits, "tenants": str(folder / "tenants.yaml")}
    service = ServiceProcess(folder, settings)
    yield service
    service.close()
    assert b"Traceback" not in service.output.read_bytes()


@pytest.fixture(autouse=True)
def nobody_else_notices(service):
    """Before, during (tests may ask more often) and after: ready, right answers, no more connections than before."""
    expected = well(service)
    gateway = psutil.Process(service.process.pid)
    before = gateway.num_fds()
    yield
    assert well(service) == expected
    end = time.monotonic() + 5
    while gateway.num_fds() > before:
        assert time.monotonic() < end, f"{gateway.num_fds()} descriptors, before {before}"
        time.sleep(0.05)


def well(service):
    """The text of a usual request."""
    assert service.ready()
    status, answer = service.post("/v1/completions", GOOD)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def refused(found, *statuses):
    """One refusal, in shape; its error."""
    (answer,) = found
    assert answer[0] in statuses, answer
    assert answer[1]["content-type"].startswith("application/json")
    return error_of(answer[2])


BODIES = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"prompt"',
    "no JSON": b"prompt=To be",
    "half": b'{"prompt": "To be',
    "two": b'{"prompt": "a"}{"prompt": "b"}',
    "no UTF-8": b'{"prompt": "\xff\xfe\xfa"}',
    "UTF-16": '{"prompt": "To be"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "To be"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "surrogates as bytes": b'{"prompt": "\xed\xa0\x80"}',
    "a lone surrogate": rb'{"prompt": "\ud800"}',
    "a zero byte": b'{"prompt": "a\0b"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "beyond floats": b'{"prompt": "a", "temperature": 1e999}',
    "beyond integers": b'{"prompt": "a", "seed": 1' + b"0" * 400 + b"}",
    "many digits": b'{"prompt": "a", "max_tokens": ' + b"9" * 20_000 + b"}",
    "deep lists": b"[" * 30_000,
    "deep objects": b'{"prompt":' * 5_000 + b"1" + b"}" * 5_000,
    "deep inside": b'{"prompt": "a", "metadata": ' + b'{"a":' * 6_000 + b"1" + b"}" * 6_000 + b"}",
    "deep token ids": b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    "wrong kinds": b'{"prompt": {"a": 1}, "max_tokens": "three", "stop": [[]], "n": true}',
    "an unknown field": b'{"prompt": "a", "__proto__": {}, "max_token": 3}',
    "a name of 10,000 letters": b'{"prompt": "a", "' + b"x" * 10_000 + b'": 1}',
    "a token that is none": b'{"prompt": [99999999]}',
    "a negative token": b'{"prompt": [-1]}',
    "a hundred stops": b'{"prompt": "a", "stop": [' + b",".join([b'"x"'] * 100) + b"]}",
    "too many texts": b'{"prompt": "a", "n": 100000}',
    "longer than the context": b'{"prompt": "' + b"a" * 20_000 + b'"}',
    "a model of 200 letters": b'{"prompt": "a", "model": "' + b"../" * 66 + b'"}',
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_says_nothing_is_refused(service, path, body):
    body = {"/v1/chat/completions": body.replace(b'"prompt"', b'"messages"')}.get(path, body)
    body = body.replace(b'"prompt"', b'"input"') if path == "/v1/embeddings" else body
    if path == "/tokenize" and body in (BODIES["longer than the context"], BODIES["a negative token"]):
        return  # it counts what does not fit; it takes no ids
    refused(exchange(service.port, post(path, body)), 400, 404)


EXTREMES = [
    {"temperature": 5e-324},
    {"temperature": 1e-38, "logit_bias": {"3": 100}},
    {"top_p": 5e-324},
    {"min_p": 1, "temperature": 2},
    {"min_p": 5e-324},
    {"logit_bias": {str(token): -100 for token in range(256)}},
    {"repetition_penalty": 5e-324},
    {"repetition_penalty": 0.01, "temperature": 1e-30},
    {"presence_penalty": 2, "frequency_penalty": -2, "repetition_penalty": 10},
    {"seed": -(1 << 63)},
    {"min_tokens": 3, "ignore_eos": True, "top_k": 1 << 20},
]


@pytest.mark.parametrize("given", EXTREMES, ids=lambda given: json.dumps(given)[:40])
def test_no_number_kills_a_worker(service, given):
    for temperature in (0, 1):
        status, answer = service.post("/v1/completions", {**GOOD, "temperature": temperature, **given})
        assert status in (200, 400), answer
    assert service.metric("lightning_gpt_worker_restarts_total") == 0


def test_the_last_of_two_equal_fields_counts(service):
    body = json.dumps(GOOD)[:-1].encode() + b', "temperature": 9, "temperature": 0}'
    ((status, _, _),) = exchange(service.port, post("/v1/completions", body))
    assert status in (200, 400)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br"])
def test_compressed_bodies_are_not_unpacked(service, encoding):
    body = post("/v1/completions", b"\x1f\x8b" + b"\0" * 100, b"Content-Encoding: " + encoding)
    refused(exchange(service.port, body), 400, 415)


def test_a_body_that_is_too_large_is_refused_before_it_has_come(service):
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 10000000000\r\n\r\n"
    with connected(service.port) as connection:
        connection.sendall(head)
        found, _ = read_all(connection, 0.5)
        assert refused(answers(found), 413)["code"]
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    with connected(service.port) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 64 << 20:  # a client that never stops
                connection.sendall(chunk)
                sent += len(chunk)
        assert sent < 32 << 20, "it must be cut off"


def test_a_body_that_never_comes_is_given_up(service):
    heads = [
        b"Content-Length: 30\r\n\r\n{",
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a"',
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 30\r\nExpect: 100-continue\r\n\r\n",
    ]
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(service.port)) for _ in heads]
        for connection, head in zip(slow, heads, strict=True):
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + HOST + head)
        well(service)
        for connection in slow:
            found, closed = read_all(connection, 3 * BODY_S + 3)
            assert closed
            refused(answers(found.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")), 408)


def test_headers_that_trickle_are_given_up(service):
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(service.port)) for _ in range(50)]
        begun = time.monotonic()
        for connection in slow:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nX-A: ")
        while time.monotonic() < begun + 2 * HEADER_S:  # a byte now and then does not help
            for connection in slow:
                with suppress(ConnectionError):
                    connection.sendall(b"a")
            well(service)
            time.sleep(0.1)
        for connection in slow:
            found, closed = read_all(connection, 5)
            assert closed
            if found:  # what was sent after the end may have cost the answer
                refused(answers(found), 408)


def test_connections_that_say_nothing_are_closed(service):
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(service.port)) for _ in range(200)]
        for connection in idle[::2]:
            connection.sendall(b"\r\n")
        well(service)
        for connection in idle:
            assert read_all(connection, 3 * HEADER_S + 3) == (b"", True)


def test_a_crowd_of_connections_is_told_to_come_again(service):
    told, tries = [], 0
    while not told and (tries := tries + 1) < 6:  # a slow machine has closed the first before the last one comes
        with ExitStack() as stack:
            crowd = [stack.enter_context(connected(service.port)) for _ in range(330)]
            found = [read_all(connection, 5) for connection in crowd]
        assert all(closed for _, closed in found)
        told = [answers(data) for data, _ in found if data]
    assert told and all(refused(one, 503) and int(one[0][1]["retry-after"]) >= 1 for one in told)


HEADS = {
    "many headers": b"".join(b"x-%d: a\r\n" % number for number in range(2000)),
    "many small headers": b"a:\r\n" * 3000,
    "one large header": b"x: " + b"a" * 200_000 + b"\r\n",
    "a large cookie": b"cookie: " + b"a=b; " * 30_000 + b"\r\n",
    "a long name": b"x" * 100_000 + b": a\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_floods_of_headers_are_refused(service, head):
    assert refused(exchange(service.port, b"GET /v1/models HTTP/1.1\r\n" + HOST + head + b"\r\n"), 431)["code"]
    endless = b"GET /v1/models HTTP/1.1\r\n" + HOST + head  # it never ends
    refused(exchange(service.port, endless), 431)


GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
SMUGGLED = {
    "both lengths": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    "both, the other way": b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n" + GET,
    "two lengths": b"Content-Length: 0\r\nContent-Length: 80\r\n\r\n" + GET,
    "a list of lengths": b"Content-Length: 0, 80\r\n\r\n" + GET,
    "a signed length": b"Content-Length: +5\r\n\r\nabcde" + GET,
    "a negative length": b"Content-Length: -1\r\n\r\n" + GET,
    "a hexadecimal length": b"Content-Length: 0x5\r\n\r\nabcde" + GET,
    "a length beyond all": b"Content-Length: 18446744073709551617\r\n\r\na" + GET,
    "an empty length": b"Content-Length: \r\n\r\n" + GET,
    "a strange encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET,
    "chunked is not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + GET,
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + GET,
    "a folded header": b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    "bare line feeds": b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    "a zero byte": b"X: a\0b\r\n\r\n" + GET,
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n" + GET,
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n" + GET,
    "a chunk beyond all": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc\r\n" + GET,
    "a chunk longer than told": b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n" + GET,
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED)
def test_no_request_is_smuggled_in(service, rest):
    found = exchange(service.port, b"POST /v1/completions HTTP/1.1\r\n" + HOST + rest)
    refused(found, 400)


STRANGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": b"GET / HTTP/3.7\r\n\r\n",
    "another protocol": b"EHLO example.org\r\nMAIL FROM:<a@b>\r\n",
    "zeros": bytes(5000),
    "no method": b" / HTTP/1.1\r\n\r\n",
    "spaces in the path": b"GET /a b HTTP/1.1\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    "an unknown method": b"BREW /v1/models HTTP/1.1\r\n\r\n",
    "a tunnel": b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_what_is_no_request_ends_the_connection(service, data):
    found = exchange(service.port, data)
    if found:
        refused(found, 400)


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"PATCH", b"TRACE", b"OPTIONS", b"PROPFIND", b"GET", b"HEAD"])
def test_other_methods_are_not_allowed(service, method):
    request = method + b" /v1/completions HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    with connected(service.port) as connection:
        connection.sendall(request)
        data, closed = read_all(connection)
    status = int(data.split()[1])
    assert closed and status == 405
    if method != b"HEAD":
        assert refused(answers(data), 405)["code"] == "method_not_allowed"


PATHS = [
    "/../../../../etc/passwd",
    "/page/../../../../../etc/passwd",
    "/page/..%2f..%2fconfig.py",
    "/page/%2e%2e/%2e%2e/server.py",
    "/page/chat.js%00.html",
    "/page//etc/passwd",
    "//v1/models",
    "/v1//models",
    "/v1/models/../../metrics",
    "/v1/models/%00",
    "/v1/models/%ff%fe",
    "/v1/models/" + "a" * 5000,
    "/v1/completions/",
    "/V1/MODELS",
    "/health/ready/../../admin/status",
    "/.git/config",
    "/" + "%41" * 3000,
    "/" + "a/" * 3000,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
def test_paths_lead_nowhere(service, path):
    request = f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"Connection: close\r\n\r\n"
    refused(exchange(service.port, request), 404)


def test_a_line_of_requests_is_answered_in_order_and_not_without_end(service):
    last = GET.replace(HOST, HOST + b"Connection: close\r\n")
    assert [status for status, _, _ in exchange(service.port, GET * 5 + last)] == [200] * 6
    with connected(service.port) as connection:
        with suppress(ConnectionError):
            connection.sendall(GET * 20_000)
        found, closed = read_all(connection, 5)
        assert closed and found.count(b"HTTP/1.1 200") < 1000


def test_clients_that_break_off_free_their_slots(service):
    body = json.dumps({**GOOD, "max_tokens": 250, "stream": True, "ignore_eos": True}).encode()
    for _ in range(40):
        with connected(service.port) as connection:
            connection.sendall(post("/v1/completions", body))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    end = time.monotonic() + 10
    while service.metric("lightning_gpt_num_requests_running") or service.metric("lightning_gpt_num_requests_waiting"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_tries_keys_is_shut_out_and_nobody_else(service):
    guesser = "127.0.0.9"
    strange = [b"lgpt-" + b"x" * 43, b"\xff\xfe", b"", b"a" * 20_000, b"Bearer Bearer", b"' OR 1=1 --"]
    seen = []
    for number in range(60):
        key = strange[number] if number < len(strange) else b"lgpt-%d" % number
        request = post("/tokenize", b'{"prompt": "a"}', b"Authorization: Bearer " + key)
        ((status, headers, body),) = exchange(service.port, request, source=guesser)
        seen.append(status)
        assert error_of(body)["code"] in ("invalid_api_key", "rate_limit_exceeded")
        assert key == b"" or key.decode("latin-1") not in body.decode()
        assert status == 401 or int(headers["retry-after"]) >= 1
    assert set(seen) == {401, 429} and seen == sorted(seen)
    well(service)
    assert key.decode() not in service.log.read_text() + service.output.read_text()


def test_all_of_it_at_once(service):
    """A crowd of each kind beside each other, while usual requests are answered."""
    kinds = [
        post("/v1/completions", BODIES["deep lists"]),
        post("/v1/completions", BODIES["no UTF-8"]),
        b"GET / HTTP/1.1\r\n" + HEADS["many headers"],
        b"POST /v1/completions HTTP/1.1\r\n" + SMUGGLED["both lengths"],
        STRANGE["TLS"],
        b"GET /v1/mod",
    ]
    failures = []

    def attack(data):
        try:
            for _ in range(5):
                exchange(service.port, data)
        except Exception as error:
            failures.append(error)

    crowd = [threading.Thread(target=attack, args=(data,)) for data in kinds]
    for thread in crowd:
        thread.start()
    while any(thread.is_alive() for thread in crowd):
        well(service)
    assert failures == []
