"""Requests that are answered before they are looked at: a real server, with sheds switched on and off."""

import asyncio
import http.client
import json
import threading

import pytest
import uvicorn

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.http_protocol import HttpLimits, canned_answer, guarded_protocol

REFUSAL = ApiError(429, "come again later", code="predicted_wait", retry_after_s=0.2)


class Server:
    """Answers 200 with the length of the body, unless `shedding`."""

    def __init__(self):
        self.shedding, self.asked = False, 0
        limits = HttpLimits(header_timeout_s=0.5, body_timeout_s=0.5)
        protocol = guarded_protocol(limits, None, self.shed)
        config = uvicorn.Config(
            self.answer,
            interface="asgi3",
            http=protocol,
            port=0,
            lifespan="off",
            log_config=None,
            timeout_keep_alive=30,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def shed(self, url):
        return canned_answer(REFUSAL) if self.shedding and url == b"/v1/completions" else None

    async def answer(self, scope, receive, send):
        self.asked += 1
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def close(self):
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


def ask(connection, body=b"x" * 1000, path="/v1/completions"):
    connection.request("POST", path, body)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_a_connection_goes_on_after_a_shed(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    assert ask(connection)[0::2] == (200, b"1000")
    first = connection.sock
    server.shedding = True
    for _ in range(3):
        status, headers, body = ask(connection)
        assert status == 429 and headers["retry-after"] == "1"
        assert json.loads(body)["error"]["code"] == "predicted_wait"
    assert server.asked == 1
    assert ask(connection, path="/v1/models")[0] == 200, "other paths are read"
    server.shedding = False
    assert ask(connection, b"y" * 500_000)[0::2] == (200, b"500000")
    assert connection.sock is first


def test_an_idle_connection_outlives_the_time_for_headers(server):
    """What waits after a shed is the next request, not the rest of one."""
    server.shedding = True
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    assert ask(connection)[0] == 429
    threading.Event().wait(0.8)
    server.shedding = False
    first = connection.sock
    assert ask(connection)[0] == 200 and connection.sock is first


def test_pipelined_requests_are_answered_in_their_order(server):
    """A request behind one that is being answered is read, shedding or not."""

    async def both():
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: "
        server.shedding = False
        writer.write(head + b"3\r\n\r\nabc")
        await writer.drain()
        await asyncio.sleep(0.1)
        server.shedding = True
        writer.write(head + b"2\r\n\r\nab" + head + b"4\r\n\r\nabcd")
        answers = b""
        while answers.count(b"HTTP/1.1") < 3 or not answers.endswith(b"}}"):
            more = await asyncio.wait_for(reader.read(65536), 5)
            assert more, answers
            answers += more
        writer.close()
        return answers

    answers = asyncio.run(both())
    statuses = [part.split(b" ")[1] for part in answers.split(b"HTTP/1.1")[1:] if part.startswith(b" ")]
    assert statuses == [b"200", b"429", b"429"]


def test_a_body_in_pieces_is_taken_before_it_is_refused(server):
    server.shedding = True
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/completions", iter([b"a" * 100_000] * 20), encode_chunked=True)
    assert connection.getresponse().status == 429 and server.asked == 0


def test_a_client_that_closes_is_closed(server):
    server.shedding = True
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/completions", b"a", {"connection": "close"})
    answer = connection.getresponse()
    assert answer.status == 429 and answer.read()
    assert connection.sock is None or connection.sock.recv(1) == b""
