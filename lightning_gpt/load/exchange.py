"""One request and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lightning_gpt.load.json_reader import loads
from lightning_gpt.load.wire import EventReader

if TYPE_CHECKING:
    from lightning_gpt.load.client import Connection

OK, WRONG, TIMEOUT, MALFORMED, TRUNCATED, CANCELLED = "ok", "wrong", "timeout", "malformed", "truncated", "cancelled"
"""Outcomes; others are refused, unreachable, reset and closed, and "STATUS code" for errors that the server told."""
MOST_CODE = 40
"""Characters of an error's code that are kept."""


class Exchange:
    """A request on its way, and its answer. Times are seconds of time.perf_counter().

    Args:
        payload: bytes to send.
        due: when it should be sent.
        timeout_s: after `due`, when it is given up.
        notify: is called once, when the outcome is known.
        prompt: number of its prompt.
        max_tokens: of its answer.
        stream: whether the answer comes as events.
        tenant: number of its key.
        gap: is called with the seconds between two tokens.
        keep_text: the answer's text is wanted.
    """

    __slots__ = (
        "_body",
        "_events",
        "_problem",
        "_texts",
        "_whole",
        "connection",
        "deadline",
        "done",
        "due",
        "ended",
        "first",
        "gap",
        "keep_text",
        "last",
        "max_tokens",
        "notify",
        "outcome",
        "payload",
        "pieces",
        "prompt",
        "retried",
        "retry_after",
        "sent",
        "status",
        "stream",
        "tenant",
        "tokens",
    )

    def __init__(
        self,
        payload: bytes,
        due: float,
        timeout_s: float,
        notify: Callable[[Exchange], None],
        prompt: int = 0,
        max_tokens: int = 0,
        stream: bool = False,
        tenant: int = 0,
        gap: Callable[[float], None] | None = None,
        keep_text: bool = False,
    ) -> None:
        self.payload, self.due, self.deadline, self.notify = payload, due, due + timeout_s, notify
        self.prompt, self.max_tokens, self.stream, self.tenant = prompt, max_tokens, stream, tenant
        self.gap, self.keep_text = gap, keep_text
        self.connection: Connection | None = None
        self.done = self.retried = self._whole = False
        self.outcome = CANCELLED
        self.sent = self.ended = 0.0
        self.first: float | None = None
        """When the first token came, of a streamed answer."""
        self.last = 0.0
        self.pieces = self.tokens = self.status = 0
        self.retry_after: str | None = None
        self._problem: str | None = None
        self._events: EventReader | None = None
        self._body: list[bytes] = []
        self._texts: list[str] = []

    def release(self) -> None:
        """Lets go of its bytes: figures alone may be kept for a while."""
        self.payload, self._body, self._texts, self._events = b"", [], [], None

    def take(self, data: bytes) -> None:
        """A piece of the answer's body."""
        if not self.stream or self.connection is None or self.connection.reader.status != 200:
            self._body.append(data)
            return
        now = perf_counter()
        if self._events is None:
            self._events = EventReader()
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self._whole = True
                continue
            try:
                self._take_event(loads(event), now)
            except (ValueError, LookupError, TypeError, AttributeError):
                self._problem = self._problem or MALFORMED

    def _take_event(self, event: dict[str, Any], now: float) -> None:
        if event.get("error"):
            self._problem = f"{self.connection.reader.status} {error_code(event)} in the stream"
            return
        if event.get("usage"):
            self.tokens = _count(event["usage"])
        text = "".join(_text(choice) for choice in event["choices"])
        if not text:
            return  # a role, a finish or the usage
        if self.first is None:
            self.first = now
        elif self.gap is not None:
            self.gap(now - self.last)
        self.last = now
        self.pieces += 1
        if self.keep_text:
            self._texts.append(text)

    def conclude(self, status: int, retry_after: str | None) -> str:
        """The outcome, once the answer is complete."""
        self.status, self.retry_after = status, retry_after
        if self.stream and status == 200:
            self.tokens = self.tokens or self.pieces
            return self._problem or (OK if self._whole else TRUNCATED)
        body = b"".join(self._body)
        try:
            content = loads(body)
            if status != 200:
                return f"{status} {error_code(content)}".rstrip()
            self.tokens = _count(content.get("usage") or {})
            choices = content["choices"]
            if self.keep_text:
                self._texts = [_text(choice) for choice in choices]
        except (ValueError, LookupError, TypeError, AttributeError):
            return MALFORMED if status == 200 else str(status)
        return OK

    @property
    def text(self) -> str:
        """The answer, where it was to be kept."""
        return "".join(self._texts)

    @property
    def body(self) -> bytes:
        """The answer's body, where it was not streamed."""
        return b"".join(self._body)


def error_code(content: dict[str, Any]) -> str:
    """`code`, or else `type`, of an error in OpenAI's shape; empty where there is none."""
    error = content.get("error") if isinstance(content, dict) else None
    found = (error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    return "".join(character for character in str(found)[:MOST_CODE] if character.isprintable())


def _count(usage: dict[str, Any]) -> int:
    """Tokens of the answer; 0 where the server does not say, or says what cannot be."""
    found = usage.get("completion_tokens")
    return found if isinstance(found, int) and 0 <= found < 2**31 else 0


def _text(choice: dict[str, Any]) -> str:
    """Of a choice of any of the four shapes: completion or chat, whole or streamed."""
    text = choice.get("text")
    if text is None:
        text = (choice.get("delta") or choice.get("message") or {}).get("content")
    return text or ""
