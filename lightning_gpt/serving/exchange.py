"""One HTTP request and its answer, over ASGI alone: the paths that a thousand requests a second take have no framework
between them and the server."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.record import RequestRecord

Receive = Callable[[], Any]
Send = Callable[[Any], Any]

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_JSON = (b"content-type", b"application/json")


class ClientGone(Exception):
    """The client has closed the connection."""


class Exchange:
    """Reads the request, writes the answer, and keeps the record.

    Args:
        scope, receive, send: ASGI's.
        trust_proxy: whether X-Forwarded-For names the client.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send, trust_proxy: bool = False) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Names in lower case; of several with one name, the last."""
        given = self.headers.get(b"x-request-id", b"")
        request_id = given.decode() if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
        trace = self.headers.get(b"traceparent")
        self.record = RequestRecord(
            request_id, scope["path"], scope["method"], traceparent=None if trace is None else trace.decode("latin-1")
        )
        self.client = _client(scope, self.headers if trust_proxy else {})
        """Address of the client."""
        self.extra: list[tuple[bytes, bytes]] = []
        """Further headers of the answer."""
        self.started = False
        """Whether the answer's head was sent."""
        self.prompt: str | None = None
        self.answer: str | None = None
        """What was asked and what was said; None unless the log is to have it."""

    def header(self, name: str) -> str | None:
        """A header of the request."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """All of the request's body.

        Raises:
            ApiError: 413, more than limit bytes; 408, it does not arrive.
            ClientGone: it never will.
        """
        if int(self.headers.get(b"content-length", b"0")) > limit:
            raise self._too_large(limit)
        message = await self._receive()  # nearly always all of it; the server bounds how long it may take
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts, more = [message.get("body", b"")], message.get("more_body", False)
        size = len(parts[0])
        if not more and size <= limit:
            return parts[0]
        try:
            async with asyncio.timeout(timeout_s):
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    more = message.get("more_body", False)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise self._too_large(limit)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {timeout_s:g} s", code="request_timeout") from None
        return b"".join(parts)

    @staticmethod
    def _too_large(limit: int) -> ApiError:
        return ApiError(413, f"the body is larger than {limit:,} bytes, the limit here", code="too_large")

    async def json(self, limit: int, timeout_s: float) -> Any:
        """The body as a JSON value.

        Raises:
            ApiError: 400, it is none; and as `body`.
        """
        body = await self.body(limit, timeout_s)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None

    def watch(self, gone: Callable[[], None]) -> asyncio.Task[None]:
        """Calls when the client goes away; the task is to be cancelled when the answer is complete."""

        async def wait() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            gone()

        return asyncio.create_task(wait())

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends the answer's head."""
        self.started, self.record.status = True, status
        own = (b"x-request-id", self.record.request_id.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, own, *self.extra]})

    async def write(self, data: bytes, more: bool = True) -> None:
        """Sends some of its body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, content: Any) -> None:
        """Sends a JSON value as the whole answer."""
        await self.respond_raw(status, orjson.dumps(content))

    async def respond_raw(self, status: int, body: bytes) -> None:
        """Sends JSON text as the whole answer."""
        await self.start(status, [_JSON, (b"content-length", str(len(body)).encode())])
        await self.write(body, more=False)

    async def refuse(self, error: ApiError) -> None:
        """Sends an error as the whole answer."""
        self.record.code = error.code
        self.extra += [(name.encode(), value.encode()) for name, value in error.headers().items()]
        await self.respond(error.status, error.body())


def _client(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
    forwarded = headers.get(b"x-forwarded-for")
    if forwarded:
        return forwarded.decode("latin-1").rpartition(",")[2].strip()
    client = scope.get("client")
    return client[0] if client else ""
