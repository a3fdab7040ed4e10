"""HTTP/1.1 connections that do not wait for ever and do not read for ever.

uvicorn bounds neither how long a request may take to arrive nor how large its headers may be; a few hundred sockets
that send a byte a minute would hold a service up for as long as they like (slowloris). Here every wait for a client has
an end, and what is too large is refused before it is kept. A usual request, which arrives in one piece, pays for no
timer.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lightning_gpt.serving.errors import ApiError


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one connection may take. Times are in seconds."""

    max_connections: int = 4096
    max_header_bytes: int = 32 * 1024
    """Request line and headers together."""
    max_headers: int = 100
    max_discarded_bytes: int = 16 << 20
    """Of a body that comes after its answer, as one that was refused does: read so that the client, which may look at
    answers only when it has sent everything, gets to see it."""
    max_pipelined: int = 16
    """Requests that may come before the first of them is answered."""
    header_timeout_s: float = 10.0
    """From the first byte, or from the connection's beginning, to the end of the headers."""
    body_timeout_s: float = 30.0
    """From the end of the headers to the end of the body."""
    write_timeout_s: float = 30.0
    """For a client to read something of an answer once the send buffer is full."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits; a refusal has the shape of the API's errors, and ends the connection.

    Args:
        limits: what a connection may take.
        on_refusal: is told of every refusal, for the metrics.
        shed: of a path, the whole answer to a request that is not even looked at; None = it is. In an overload a
            refusal must cost next to nothing, else refusing takes the time in which others could be served.
        settings: uvicorn's own.
    """

    def __init__(
        self,
        limits: HttpLimits,
        on_refusal: Callable[[ApiError], None] | None = None,
        shed: Callable[[bytes], bytes | None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.limits, self.on_refusal, self.shed = limits, on_refusal, shed
        self._canned: bytes | None = None  # answer of the request that is arriving and is not looked at
        self._idle = False  # whether such a request was the last
        self._part: str | None = None  # of a request that is arriving: headers, body
        self._timer: TimerHandle | None = None
        self._timed: str | None = None  # what the timer waits for
        self._write_timer: TimerHandle | None = None
        self._header_bytes = self._discarded = 0
        self._refusal: ApiError | None = None

    # ---- what arrives

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            words = f"{self.limits.max_connections} connections are open, as many as may be: try again"
            self._refuse(ApiError(503, words, code="too_many_connections", retry_after_s=1))
        else:
            self._wait_for("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # it was refused; what it still sends is nothing to us
        if self._part != "body":
            self._header_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._part == "headers" and self._header_bytes > self.limits.max_header_bytes:
            self._refuse(self._too_many_headers())
        elif self._part is None and (self._answering or self._idle):
            self._wait_for(None)
        else:
            self._wait_for(self._part or "headers")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.limits.max_pipelined:
            self._stop(ApiError(400, "too many requests were sent before the first was answered", code="pipelined"))
        super().on_message_begin()
        self._part, self._idle = "headers", False
        self._discarded = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers:
            self._stop(self._too_many_headers())

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._stop(self._too_many_headers())
        self._part = "body"
        self._header_bytes = 0
        if self.shed is not None and not self._answering and not self.pipeline and not self.expect_100_continue:
            self._canned = self.shed(self.url)
            if self._canned is not None:
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._answering:
            self._discarded += len(body)
            if self._discarded > self.limits.max_discarded_bytes:
                self.transport.close()
        if self._canned is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = None
        if self._canned is None:
            super().on_message_complete()
            return
        self.transport.write(self._canned)
        self._canned, self._idle = None, True
        if self.parser.should_keep_alive():
            self._unset_keepalive_if_required()
            seconds = self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
        else:
            self.transport.close()

    # ---- waiting

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for(self, part: str | None) -> None:
        if part == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timed = None, part
        if part is not None:
            seconds = self.limits.header_timeout_s if part == "headers" else self.limits.body_timeout_s
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        part, self._timer, self._timed = self._timed, None, None
        if self.transport.is_closing():
            return
        if part == "headers" and self._answering:
            self._wait_for(part)  # of the next request, while this one is computed: that has a deadline of its own
        elif self._part is None:
            self.transport.close()  # nothing of a request is there: nothing to be answered
        else:
            self._refuse(ApiError(408, f"the request's {part} did not arrive in time", code="request_timeout"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self.flow is not None:
            super().resume_writing()

    # ---- refusing

    def _too_many_headers(self) -> ApiError:
        most = f"{self.limits.max_header_bytes} bytes and {self.limits.max_headers} headers"
        return ApiError(431, f"the request's headers are larger than {most}", code="headers_too_large")

    def _stop(self, error: ApiError) -> None:
        """In a callback of the parser, which must be left by an exception; it ends in send_400_response."""
        self._refusal = error
        raise ValueError(error.message)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for whatever the parser did not take."""
        self._refuse(self._refusal or ApiError(400, "this is not a valid HTTP/1.1 request", code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answers, unless an answer is being written already, and closes."""
        self._wait_for(None)
        if self.on_refusal is not None:
            self.on_refusal(error)
        unanswered = self._part == "body" and self._answering and not self.cycle.response_started
        if not self.pipeline and (unanswered or not (self._answering or self._part == "body")):
            body = json.dumps(error.body()).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | error.headers()).items())
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        if self.cycle is not None:
            self.cycle.disconnected = True  # whoever computes an answer need not go on
            self.cycle.message_event.set()
        self.transport.close()


def canned_answer(error: ApiError) -> bytes:
    """A refusal as it goes over the wire."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body


def guarded_protocol(
    limits: HttpLimits,
    on_refusal: Callable[[ApiError], None] | None = None,
    shed: Callable[[bytes], bytes | None] | None = None,
) -> Callable[..., GuardedProtocol]:
    """For `uvicorn.Config(http=...)`."""
    return partial(GuardedProtocol, limits, on_refusal, shed)
