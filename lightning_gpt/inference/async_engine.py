"""The engine for event loops: one thread computes, any number of coroutines wait for their texts.

The event loop never touches a tensor: what it asks for is put down in a list that the thread reads between steps, and
each step sends every loop one message with all that is new. A reader that lags finds what it missed in its mailbox.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineStats
from lightning_gpt.inference.request import Completion, Output, Request
from lightning_gpt.inference.scheduler import QueueFullError


class EngineStoppedError(RuntimeError):
    """The engine takes no requests any more, or has failed."""


class _Mailbox:
    """What one reader has not seen yet. Belongs to its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.outputs: list[Output] = []
        self.error: BaseException | None = None
        self._news = asyncio.Event()

    def put(self, output: Output | BaseException) -> None:
        """In the event loop's thread."""
        if isinstance(output, BaseException):
            self.error = output
        else:
            self.outputs.append(output)
        self._news.set()

    async def take(self) -> list[Output]:
        """All that came since the last time, at least one; raises what the engine raised."""
        while not self.outputs:
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()
        outputs, self.outputs = self.outputs, []
        return outputs


_Letter = tuple[_Mailbox, Output | BaseException]


class AsyncEngine:
    """Runs an engine in a thread of its own, which it alone drives from then on.

    Args:
        engine: with max_waiting, so that a crowd is told to come later.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._orders: list[tuple[_Mailbox, Request | None]] = []  # None = cancel
        self._asked = 0  # requests among them
        self._closing = self._aborting = False
        self._error: BaseException | None = None
        # Of the thread alone:
        self._boxes: dict[int, _Mailbox] = {}
        self._keys: dict[_Mailbox, int] = {}
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; False after `close` and after an error."""
        return self._thread.is_alive() and self._error is None

    @property
    def silence_s(self) -> float:
        """Seconds since the thread last showed life, which it does between steps and every second without work."""
        return time.monotonic() - self._beat

    def stats(self) -> EngineStats:
        """As Engine; requests that the thread has not seen yet count as waiting."""
        stats = self.engine.stats()
        return replace(stats, waiting=stats.waiting + self._asked)

    def check(self, request: Request) -> None:
        """Whether a request would be taken now. May be called from any thread; touches no tensors.

        Raises:
            ValueError: it never would.
            QueueFullError: too many are waiting.
            EngineStoppedError: the engine is closing or has failed.
        """
        if self._error is not None:
            raise EngineStoppedError(f"the engine has failed: {self._error}") from self._error
        if self._closing:
            raise EngineStoppedError("the engine is closing and takes no more requests")
        self.engine.check(request)
        most, waiting = self.engine.config.max_waiting, len(self.engine.scheduler.waiting) + self._asked
        if most is not None and waiting >= most:
            raise QueueFullError(f"{waiting} requests are waiting, max_waiting={most}: try later")

    async def generate(self, request: Request) -> AsyncIterator[Output]:
        """The outputs of a request as they come; the last has `finish`. Leaving the iteration, or cancelling the task
        that runs it, cancels the request.

        Raises:
            ValueError, QueueFullError, EngineStoppedError: as `check`, before anything is generated.
            Exception: whatever the engine raised while it computed.
        """
        box = _Mailbox(asyncio.get_running_loop())
        with self._wake:
            self.check(request)
            self._orders.append((box, request))
            self._asked += 1
            self._wake.notify()
        finished = False
        try:
            while not finished:
                for output in await box.take():
                    finished = output.finish is not None
                    yield output
        finally:
            if not finished:
                with self._wake:
                    self._orders.append((box, None))
                    self._wake.notify()

    async def complete(self, request: Request) -> Completion:
        """The whole text of a request. As `generate`."""
        completion = Completion()
        async for output in self.generate(request):
            completion.add(output)
        return completion

    async def close(self, drain: bool = True, timeout_s: float | None = None) -> None:
        """Takes no more requests and stops the thread.

        Args:
            drain: finish those that are under way; False = they end with finish=cancelled.
            timeout_s: of draining; what is not finished by then is cancelled. None = as long as it takes.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if drain:
            await asyncio.to_thread(self._thread.join, timeout_s)
        with self._wake:
            self._aborting = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The thread."""
        try:
            while self._follow_orders():
                self._deliver(self.engine.step())
        except BaseException as error:  # every reader hears of it, whatever it is
            self._fail(error)

    def _follow_orders(self) -> bool:
        """Waits for something to do; False = there is nothing and there will be nothing."""
        with self._wake:
            while not (self._orders or self.engine.busy or self._closing):
                self._beat = time.monotonic()
                self._wake.wait(1.0)
            orders, self._orders, self._asked = self._orders, [], 0
            closing, aborting = self._closing, self._aborting
        self._beat = time.monotonic()
        for box, request in orders:
            if request is not None:
                self._add(box, request)
            elif box in self._keys:
                self.engine.cancel(self._keys[box])
        if aborting:
            for key in list(self._boxes):
                self.engine.cancel(key)
        return self.engine.busy or not closing

    def _add(self, box: _Mailbox, request: Request) -> None:
        try:
            key = self.engine.add(request)
        except Exception as error:  # this request's own fault; the others go on
            self._send({box.loop: [(box, error)]})
            return
        self._boxes[key], self._keys[box] = box, key

    def _deliver(self, outputs: list[Output]) -> None:
        mail: dict[asyncio.AbstractEventLoop, list[_Letter]] = {}
        for output in outputs:
            box = self._boxes[output.key]
            mail.setdefault(box.loop, []).append((box, output))
            if output.finish is not None:
                del self._boxes[output.key], self._keys[box]
        self._send(mail)

    @staticmethod
    def _send(mail: dict[asyncio.AbstractEventLoop, list[_Letter]]) -> None:
        """One message for each event loop."""
        for loop, letters in mail.items():
            try:
                loop.call_soon_threadsafe(_put_all, letters)
            except RuntimeError:  # the loop is closed: nobody reads
                continue

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self._error = error
            boxes = [*self._keys, *(box for box, request in self._orders if request is not None)]
            self._orders, self._asked = [], 0
        for box in boxes:
            self._send({box.loop: [(box, error)]})


def _put_all(letters: list[_Letter]) -> None:
    for box, output in letters:
        box.put(output)
