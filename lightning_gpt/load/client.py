"""A small HTTP/1.1 client for many short requests: connections that stay open, and nothing between them and asyncio.

General clients take 0.3 to 1 ms of processor time a request, which on a machine shared with the server would be what is
measured; this one takes well below 0.1 ms.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Any

from lightning_gpt.load.exchange import CANCELLED, MALFORMED, TIMEOUT, Exchange
from lightning_gpt.load.requests import head
from lightning_gpt.load.target import Target
from lightning_gpt.load.wire import AnswerReader, MalformedAnswerError

SWEEP_S = 0.02
"""Between looks for requests that have waited too long."""


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    __slots__ = ("alive", "client", "exchange", "reader", "received", "reused", "transport")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reader = AnswerReader()
        self.exchange: Exchange | None = None
        self.alive = True
        self.reused = False
        """Whether it served before or lay idle: the server may have closed it since."""
        self.received = False
        """Whether anything of this answer came."""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio's call."""
        self.transport = transport
        self.client.connected(self)

    def start(self, exchange: Exchange) -> None:
        """Sends a request."""
        self.exchange, exchange.connection, self.received = exchange, self, False
        self.reader.begin(exchange.take)
        if not exchange.sent:
            exchange.sent = perf_counter()
        self.transport.write(exchange.payload)

    def data_received(self, data: bytes) -> None:
        """Asyncio's call."""
        if self.exchange is None:  # nobody asked
            self.break_off()
            return
        self.received = True
        try:
            complete = self.reader.feed(data)
        except MalformedAnswerError:
            exchange, self.exchange = self.exchange, None
            self.break_off()
            self.client.finish(exchange, MALFORMED)
            return
        if complete:
            self._complete()

    def _complete(self) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        reader = self.reader
        outcome = exchange.conclude(reader.status, reader.retry_after)
        if reader.keep_alive and self.alive:
            self.reused = True
            self.client.free(self)
        else:
            self.alive = False
            self.transport.close()
        self.client.finish(exchange, outcome)

    def break_off(self) -> None:
        """Closes at once; the exchange, if any, is no longer its own."""
        self.exchange = None
        self.alive = False
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio's call."""
        self.alive = False
        self.client.lost()
        if self.exchange is None:
            return
        if error is None and self.reader.end_of_file():
            self._complete()
            return
        exchange, self.exchange = self.exchange, None
        if self.reused and not self.received and not exchange.retried:
            # The server closed an idle connection while the request was on its way: it never saw it.
            exchange.retried = True
            self.client.reconnects += 1
            self.client.carry(exchange)
        else:
            self.client.finish(exchange, "reset" if isinstance(error, ConnectionError) else "closed")


class Client:
    """Sends exchanges over as few connections as it needs; belongs to the running event loop.

    Args:
        target: the server.
        limit: connections at most; exchanges beyond it wait for one.
        timeout_s: for opening a connection.
    """

    def __init__(self, target: Target, limit: int, timeout_s: float) -> None:
        self.target, self.limit, self.timeout_s = target, limit, timeout_s
        self.reconnects = 0
        """Requests that were sent again, as the server had closed the idle connection."""
        self.waited = 0
        """Requests that found every connection busy and no other allowed."""
        self.opened = 0
        """Connections, all together."""
        self._loop = asyncio.get_running_loop()
        self._addresses = list(target.addresses)
        self._context = target.ssl_context()
        self._idle: list[Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._under_way: deque[Exchange] = deque()
        self._open = 0
        self._opening: set[asyncio.Task[None] | None] = set()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    async def reach(self, connections: int = 1) -> None:
        """Opens connections before the clock runs, and finds which of the name's addresses answers.

        Raises:
            ConnectionError: none does.
        """
        reasons = []
        for address in list(self._addresses):
            try:
                for _ in range(connections):
                    await self._connect(address)
                self._addresses = [address]
                return
            except (OSError, TimeoutError) as error:
                reasons.append(error.strerror or str(error) or type(error).__name__)
        raise ConnectionError(f"no server at {self.target.host}: {reasons[0]}")

    async def fetch(self, path: str, key: str) -> tuple[int, bytes]:
        """GET: status (0 = no answer) and body."""
        answered: asyncio.Future[Exchange] = self._loop.create_future()
        payload = head("GET", self.target.path + path, self.target, key, []) + b"\r\n"
        self.submit(Exchange(payload, perf_counter(), self.timeout_s, answered.set_result))
        exchange = await answered
        return exchange.status, exchange.body

    def submit(self, exchange: Exchange) -> None:
        """Sends it now, or as soon as there is a connection. Those with the earlier deadlines come first."""
        self._under_way.append(exchange)
        self.carry(exchange)

    def carry(self, exchange: Exchange) -> None:
        """Gives it a connection; also for one that is sent again."""
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                connection.start(exchange)
                return
        self._waiting.append(exchange)
        if self._open + len(self._opening) >= self.limit:
            self.waited += 1
        self._open_more()

    def _open_more(self) -> None:
        """A connection for each that waits, within the limit."""
        while len(self._opening) < min(len(self._waiting), self.limit - self._open):
            self._opening.add(self._loop.create_task(self._open_one()))

    async def _open_one(self) -> None:
        outcome = None
        try:
            await self._connect(self._addresses[0])
        except TimeoutError:
            pass  # those who wait for it time out by themselves
        except OSError as error:
            outcome = "refused" if isinstance(error, ConnectionRefusedError) else "unreachable"
        self._opening.discard(asyncio.current_task())
        exchange = self._next() if outcome else None
        if exchange is not None:
            self.finish(exchange, outcome)
        self._open_more()

    async def _connect(self, address: str) -> None:
        name = self.target.name if self._context else None
        async with asyncio.timeout(self.timeout_s):
            await self._loop.create_connection(
                lambda: Connection(self), address, self.target.port, ssl=self._context, server_hostname=name
            )

    def connected(self, connection: Connection) -> None:
        """It is open."""
        self._open += 1
        self.opened += 1
        self.free(connection)

    def free(self, connection: Connection) -> None:
        """It may carry the next exchange."""
        exchange = self._next()
        if exchange is not None:
            connection.start(exchange)
        else:
            connection.reused = True
            self._idle.append(connection)

    def lost(self) -> None:
        """A connection has ended."""
        self._open -= 1
        self._open_more()

    def _next(self) -> Exchange | None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.done:
                return exchange
        return None

    def finish(self, exchange: Exchange, outcome: str) -> None:
        """The outcome is known."""
        exchange.ended = perf_counter()
        exchange.done, exchange.outcome, exchange.connection = True, outcome, None
        exchange.notify(exchange)

    def _sweep(self) -> None:
        """Gives up what has waited too long. All have the same timeout, so those that are first due are in front."""
        now, under_way = perf_counter(), self._under_way
        while under_way and (under_way[0].done or under_way[0].deadline <= now):
            exchange = under_way.popleft()
            if not exchange.done:
                self._give_up(exchange, TIMEOUT)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _give_up(self, exchange: Exchange, outcome: str) -> None:
        connection = exchange.connection
        if connection is not None:
            connection.break_off()
        self.finish(exchange, outcome)

    async def close(self) -> None:
        """Gives up what is under way and closes every connection."""
        self._sweeper.cancel()
        self._waiting.clear()
        for task in list(self._opening):
            task.cancel()
        for exchange in self._under_way:
            if not exchange.done:
                self._give_up(exchange, CANCELLED)
        self._under_way.clear()
        for connection in self._idle:
            if connection.alive:
                connection.transport.close()
        await asyncio.sleep(0)
