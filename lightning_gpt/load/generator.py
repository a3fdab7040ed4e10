"""Sends the requests when they are due, and waits for what comes of them."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

from lightning_gpt.load.answers import Answers
from lightning_gpt.load.client import Client
from lightning_gpt.load.exchange import CANCELLED, OK, WRONG, Exchange
from lightning_gpt.load.recorder import Recorder
from lightning_gpt.load.requests import Bodies, Draws
from lightning_gpt.load.settings import LoadSettings

CLOCK_S = 0.001
"""What event loops round their clocks to: they are not asked for less."""
PAUSE_S = 0.1
"""A closed loop's client waits so long after an answer that came in no time at all, such as a refused connection."""
GRACE_S = 5.0
"""How long a load that was stopped waits for answers under way."""
MOST_CLIENTS = 100_000
"""Of a closed loop."""


@dataclass(frozen=True)
class Second:
    """What happened in a second, for those who watch."""

    second: float
    """Since the start."""
    sent: int
    done: int
    errors: int
    """Of `done`."""
    in_flight: int
    p50_ms: float
    """Of the answers of this second; NaN without answers."""
    p99_ms: float
    tokens: int
    total_sent: int
    total_errors: int


class Generator:
    """One load; belongs to the running event loop.

    Args:
        settings: of the load.
        client: sends.
        bodies: makes the requests' bytes.
        draws: what each request asks.
        due: when each is due, seconds from the start; None = a closed loop.
        answers: the right ones, if they are to be compared.
        on_second: is called once a second.
    """

    def __init__(
        self,
        settings: LoadSettings,
        client: Client,
        bodies: Bodies,
        draws: Draws,
        due: np.ndarray | None,
        answers: Answers | None = None,
        on_second: Callable[[Second], None] | None = None,
    ) -> None:
        self.settings, self.client, self.bodies, self.draws = settings, client, bodies, draws
        self.answers, self.on_second = answers, on_second
        self.recorder = Recorder()
        self.start = 0.0
        self.stopped = False
        """Whether it was ended early."""
        self.sending_s = 0.0
        """Seconds in which requests were sent."""
        self.processor_s = 0.0
        """Processor time that this process took while it ran."""
        self._due = None if due is None else array("d", due.astype(np.float64).tobytes())
        self._next = 0
        self._in_flight = 0
        self._sending = True
        self._all_done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._latencies: list[float] = []
        self._before = [0, 0, 0]  # sent, errors, tokens at the last second
        self._errors = self._tokens = 0

    async def run(self) -> None:
        """Sends everything, then waits for the last answers, which the timeout bounds."""
        began = process_time()
        self.start = perf_counter()
        self._ticker = self._loop.call_later(1.0, self._tick, 1)
        if self._due is None:
            for _ in range(min(self.settings.concurrency or 1, self.settings.requests or MOST_CLIENTS)):
                self._send_one(perf_counter())
            self._loop.call_later(self.settings.duration_s, self._end_sending)
        else:
            self._send_due()
        try:
            await self._all_done.wait()
        finally:
            self._ticker.cancel()
            self.processor_s = process_time() - began

    def stop(self) -> None:
        """Sends no more; a second call does not wait for answers either."""
        if self.stopped:
            self._all_done.set()
            return
        self.stopped = True
        self._end_sending()
        self._loop.call_later(GRACE_S, self._all_done.set)

    def _send_due(self) -> None:
        due, start = self._due, self.start
        assert due is not None
        while self._sending and self._next < len(due):
            now = perf_counter()
            wait = start + due[self._next] - now
            if wait > 0:
                self._loop.call_later(max(wait, CLOCK_S), self._send_due)
                return
            self._send_one(start + due[self._next])
        if self._sending:  # the last has gone, but the schedule may be longer
            rest = start + self.settings.seconds - perf_counter()
            if self.settings.requests is None and rest > 0:
                self._loop.call_later(max(rest, CLOCK_S), self._end_sending)
            else:
                self._end_sending()

    def _send_one(self, due: float) -> None:
        settings, draws = self.settings, self.draws
        place = self._next % len(draws.prompt)
        self._next += 1
        prompt, most, stream = draws.prompt[place], draws.max_tokens[place], bool(draws.stream[place])
        tenant = draws.tenant[place]
        payload = self.bodies.payload(prompt, most, stream, tenant)
        self._in_flight += 1
        self.client.submit(
            Exchange(
                payload,
                due,
                settings.timeout_s,
                self._ended,
                prompt,
                most,
                stream,
                tenant,
                self.recorder.gaps.add if due - self.start >= settings.warmup_s else None,
                self.answers is not None,
            )
        )

    def _ended(self, exchange: Exchange) -> None:
        self._in_flight -= 1
        if exchange.outcome == OK and self.answers is not None and not self.answers.right(exchange):
            exchange.outcome = WRONG
        self.recorder.add(exchange, self.start)
        self._tokens += exchange.tokens
        if exchange.outcome == OK:
            self._latencies.append(exchange.ended - exchange.due)
        elif exchange.outcome != CANCELLED:
            self._errors += 1
        exchange.release()
        if self._due is None and self._sending:
            if self.settings.requests is not None and self._next >= self.settings.requests:
                self._end_sending()
            elif exchange.status == 0 or exchange.status >= 400:
                self._loop.call_later(PAUSE_S, self._ask_again)
            else:
                # Not at once: the connection that brought the answer is free only after this.
                self._loop.call_soon(self._ask_again)
        if not self._sending and self._in_flight == 0:
            self._all_done.set()

    def _ask_again(self) -> None:
        if self._sending:
            self._send_one(perf_counter())

    def _end_sending(self) -> None:
        if self._sending:
            self._sending = False
            self.sending_s = perf_counter() - self.start
        if self._in_flight == 0:
            self._all_done.set()

    def _tick(self, number: int) -> None:
        self._ticker = self._loop.call_later(self.start + number + 1 - perf_counter(), self._tick, number + 1)
        sent, errors, tokens = self._next, self._errors, self._tokens
        latencies, self._latencies = self._latencies, []
        news = [new - old for new, old in zip((sent, errors, tokens), self._before)]
        self._before = [sent, errors, tokens]
        if self.on_second is None:
            return
        p50, p99 = np.percentile(latencies, [50, 99]) * 1e3 if latencies else (float("nan"),) * 2
        self.on_second(
            Second(
                perf_counter() - self.start,
                news[0],
                len(latencies) + news[1],
                news[1],
                self._in_flight,
                float(p50),
                float(p99),
                news[2],
                sent,
                errors,
            )
        )
