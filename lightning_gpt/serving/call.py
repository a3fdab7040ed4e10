"""A text on its way: what a client waits for, and where it has got to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.messages import Broken, Order, Piece, Refused

if TYPE_CHECKING:
    from lightning_gpt.serving.replica import Replica


class Inbox:
    """What has come of the calls of one HTTP request and was not read yet. A reader that lags finds all of it."""

    __slots__ = ("_error", "_pieces", "_waiter")

    def __init__(self) -> None:
        self._pieces: list[tuple[Call, Piece]] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, call: Call, piece: Piece) -> None:
        """Something new of a call."""
        self._pieces.append((call, piece))
        self._wake()

    def fail(self, error: Exception) -> None:
        """The request comes to nothing; the first reason counts."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[Call, Piece]]:
        """All that came since the last time, at least one piece.

        Raises:
            Exception: what `fail` was given, once all that came before was taken.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pieces, self._pieces = self._pieces, []
        return pieces


class Call:
    """One order, and the reader who waits for it. Belongs to the event loop.

    Args:
        order: what is asked for.
        inbox: of the reader.
        index: which of the request's texts it is.
        deadline: time.monotonic() after which nobody wants it.
        priority: smaller is served first.
        own_deadline: whether the deadline is the client's, not the service's.
    """

    __slots__ = (
        "attempts",
        "cost",
        "deadline",
        "dispatched",
        "done",
        "gone",
        "inbox",
        "index",
        "order",
        "own_deadline",
        "priority",
        "replica",
        "started",
    )

    def __init__(
        self, order: Order, inbox: Inbox, index: int, deadline: float, priority: int = 0, own_deadline: bool = False
    ) -> None:
        self.order, self.inbox, self.index = order, inbox, index
        self.deadline, self.priority, self.own_deadline = deadline, priority, own_deadline
        self.cost = len(order.prompt) + order.max_tokens
        """Tokens that it may take."""
        self.dispatched: float | None = None
        """When it first went to a worker."""
        self.replica: Replica | None = None
        self.attempts = 0
        """Workers that died with it."""
        self.started = False
        """Whether something of it was given to the reader, after which it cannot begin anew."""
        self.done = False
        """Whether all of it was."""
        self.gone = False
        """Whether nobody waits for it any more."""

    def give(self, piece: Piece) -> None:
        """Something new of it."""
        if self.gone:
            return
        self.started, self.done = True, piece.finish is not None
        self.inbox.put(self, piece)

    def fail(self, error: ApiError) -> None:
        """It comes to nothing."""
        self.done = True
        if not self.gone:
            self.inbox.fail(error)

    def expire(self) -> None:
        """Its deadline has passed. One that the client set is the client's: it would else be a way to make a service
        look broken."""
        if self.own_deadline:
            self.fail(ApiError(408, "the deadline of X-Request-Timeout has passed", code="client_deadline"))
        else:
            self.fail(ApiError(504, "the request's deadline has passed", code="deadline_exceeded"))

    def refuse(self, letter: Refused | Broken) -> None:
        """The engine did not take it, or broke on it."""
        if isinstance(letter, Refused):
            self.fail(ApiError(400, letter.message, code="invalid_value"))
        else:
            self.fail(ApiError(500, "the engine failed on this request; others go on", code="engine_error"))
