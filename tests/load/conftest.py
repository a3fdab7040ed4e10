"""A real server of OpenAI's shapes on a real socket, whose behaviour tests choose."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest


class TinyServer:
    """Answers in a thread of its own. Its attributes may be changed at any time.

    delay_s: of every answer. token_s: before each piece of a stream. chunked: answers that are not streamed come in
    chunks too. close_after: answers of a connection, idle_s: without a request, after which it is closed. stall: (from,
    to) in seconds since the first request, in which nothing is answered. answer: makes the text of an answer from the
    request's body. behave: None, or called with (number, headers, body), returns None for an ordinary answer, bytes to
    send in its place, or "close" / "reset" / "hang".
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.token_s = 0.002
        self.chunked = False
        self.close_after: int | None = None
        self.idle_s: float | None = None
        self.stall: tuple[float, float] = (0.0, 0.0)
        self.answer: Callable[[dict], str] = lambda body: f"to {body.get('prompt') or body.get('messages')}"
        self.behave: Callable[[int, dict, dict], object] | None = None
        self.seen: list[tuple[float, dict, dict]] = []
        self.connections = 0
        self.began = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def stop_listening(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._server.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        count = 0
        try:
            while await self._answer_one(reader, writer):
                count += 1
                if count == self.close_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(self.idle_s):
            head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines[1:] if one)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        if lines[0].startswith("GET /v1/models"):
            writer.write(whole(json.dumps({"data": [{"id": "tiny"}]}).encode()))
            return True
        number = len(self.seen)
        if number == 0:
            self.began = time.perf_counter()
        self.seen.append((time.perf_counter() - self.began, headers, body))
        since = time.perf_counter() - self.began
        if self.stall[0] <= since < self.stall[1]:
            await asyncio.sleep(self.stall[1] - since)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        wish = self.behave(number, headers, body) if self.behave else None
        if wish == "hang":
            await asyncio.sleep(60)
        if wish == "reset":
            writer.transport.abort()
            return False
        if wish == "close":
            return False
        if isinstance(wish, bytes):
            writer.write(wish)
            return b"Content-Length" in wish and b"close" not in wish
        await self._answer(body, writer)
        return True

    async def _answer(self, body: dict, writer: asyncio.StreamWriter) -> None:
        chat, text, usage = "messages" in body, self.answer(body), {"prompt_tokens": 3, "completion_tokens": 4}
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            content = json.dumps({"choices": [choice | {"finish_reason": "length"}], "usage": usage}).encode()
            if not self.chunked:
                writer.write(whole(content))
                return
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(content), 7):
                part = content[start : start + 7]
                writer.write(b"%x;a=b\r\n%b\r\n" % (len(part), part))
            writer.write(b"0\r\nX-Trailer: 1\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if chat:
            send_event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            await asyncio.sleep(self.token_s)
            send_event(writer, {"choices": [{"delta": {"content": part}} if chat else {"text": part}]})
        send_event(writer, {"choices": [], "usage": usage})
        send_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")


def send_event(writer: asyncio.StreamWriter, content: object) -> None:
    data = b"data: %b\n\n" % (content.encode() if isinstance(content, str) else json.dumps(content).encode())
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def whole(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


@pytest.fixture
def server() -> Iterator[TinyServer]:
    tiny = TinyServer()
    yield tiny
    tiny.stop()


@pytest.fixture
def whole_answer() -> Callable[..., bytes]:
    return whole
