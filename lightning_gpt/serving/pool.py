"""The workers of one version of a model, and the queue before them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lightning_gpt.serving.call import Call
from lightning_gpt.serving.config import ServiceConfig, VersionConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.fair_queue import FairQueue, QueueFull
from lightning_gpt.serving.messages import Hello
from lightning_gpt.serving.replica import Replica, WorkerStartError

SWEEP_S = 0.05
"""Time between looks at deadlines and at signs of life."""
BACK_OFF_S = (0.0, 0.5, 30.0)
"""Before a worker is started again: at first, then, doubling, at most. A minute of life makes good."""

Event = Callable[[str, dict[str, Any]], None]
"""Hears what happens: a word and what belongs to it."""


class Pool:
    """Gives calls to workers, and them to others when a worker dies.

    Args:
        model: name of the model.
        version: what its workers serve.
        chat_template: of the model.
        service: limits, heart beat, retries.
        threads: of each worker.
        event: told of workers that begin and end.
    """

    def __init__(
        self,
        model: str,
        version: VersionConfig,
        chat_template: str | None,
        service: ServiceConfig,
        threads: int,
        event: Event,
    ) -> None:
        self.model, self.version, self.service = model, version, service
        self._chat_template, self._threads, self._event = chat_template, threads, event
        self.queue: FairQueue[Call] = FairQueue(service.limits.max_queue)
        self.replicas: list[Replica] = []
        """Alive and ready, standby ones among them."""
        self.hello: Hello | None = None
        self.restarts = self.retried = 0
        self.on_stats: Callable[[Pool], None] = lambda pool: None
        """Called about twice a second."""
        self._again: deque[Call] = deque()  # calls whose worker died: they go first
        self._starting: set[Replica] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = 0
        self._closing = False

    async def start(self) -> Hello:
        """Starts all workers.

        Raises:
            WorkerStartError: one of them cannot.
        """
        self._spawn(self._watch())
        count = self.version.replicas + self.version.standby
        try:
            await asyncio.gather(*(self._start_one() for _ in range(count)))
        except BaseException:
            await self.stop()
            raise
        return self.hello

    @property
    def ready(self) -> bool:
        """Whether a worker serves."""
        return any(replica.active and not replica.dead for replica in self.replicas)

    @property
    def running(self) -> int:
        """Calls that workers have."""
        return sum(len(replica.calls) for replica in self.replicas)

    @property
    def waiting(self) -> int:
        """Calls that no worker has yet."""
        return len(self.queue) + len(self._again)

    @property
    def tokens_ahead(self) -> int:
        """Tokens that may have to be computed before a new call's."""
        again = sum(call.cost for call in self._again)
        return self.queue.tokens + again + sum(replica.tokens for replica in self.replicas)

    def submit(self, call: Call) -> None:
        """Takes a call; it goes to a worker now or when one has room.

        Raises:
            ApiError: 429, too many wait; 503, it is closing.
        """
        if self._closing:
            raise ApiError(503, "the service is shutting down: send it again", code="draining", retry_after_s=1)
        try:
            self.queue.push(call, call.order.tenant, call.priority, call.cost, call.deadline)
        except QueueFull:
            raise self.full(1.0) from None
        self._dispatch()

    def full(self, retry_after_s: float) -> ApiError:
        """What a request is told when as many wait as may."""
        return ApiError(
            429,
            f"{len(self.queue)} requests are waiting, which is the limit: try again later",
            code="queue_full",
            retry_after_s=retry_after_s,
        )

    def cancel(self, call: Call) -> None:
        """Nobody waits for the call any more; what it holds becomes free."""
        if call.replica is not None:
            call.replica.cancel(call)
            return
        call.gone = True
        if not self.queue.remove(call):
            with contextlib.suppress(ValueError):
                self._again.remove(call)

    def _dispatch(self) -> None:
        """Gives calls to the workers with the most room."""
        while self.queue or self._again:
            replica = max(self.replicas, key=lambda one: one.room, default=None)
            if replica is None or replica.room < 1:
                return
            call = self._again.popleft() if self._again else self.queue.pop(time.monotonic())
            if call is None:
                return
            call.dispatched = call.dispatched or time.monotonic()
            replica.submit(call)

    def _changed(self, replica: Replica) -> None:
        if replica.dead and replica in self.replicas:
            self.replicas.remove(replica)
            self._rescue(replica)
            self._promote()
            if not self._closing:
                self._event("worker_died", {"worker": replica.name, "pid": replica.pid, "waiting": self.waiting})
                self._spawn(self._restart())
        self._dispatch()

    def _rescue(self, replica: Replica) -> None:
        """The dead worker's calls begin anew, unless a reader has seen something of them."""
        for call in reversed(replica.take_calls()):
            call.replica, call.attempts = None, call.attempts + 1
            if call.gone:
                continue
            if call.started or call.attempts > self.service.retries:
                call.fail(
                    ApiError(
                        503,
                        "the worker that computed this has died; another takes its place: send it again",
                        code="worker_died",
                        retry_after_s=1,
                    )
                )
            else:
                self.retried += 1
                self._again.appendleft(call)

    def _promote(self) -> None:
        """Whoever stands by takes an empty place."""
        missing = self.version.replicas - sum(replica.active for replica in self.replicas)
        for replica in self.replicas:
            if missing > 0 and not replica.active:
                replica.active, missing = True, missing - 1

    async def _start_one(self) -> None:
        self._started += 1
        name = f"{self.model}@{self.version.id}-{self._started}"
        replica = Replica(self.version, self._chat_template, self._threads, name, self._changed)
        self._starting.add(replica)
        try:
            self.hello = await replica.start()
        except BaseException:
            await replica.stop()
            raise
        finally:
            self._starting.discard(replica)
        replica.active = sum(one.active for one in self.replicas) < self.version.replicas
        self.replicas.append(replica)
        self._event("worker_ready", {"worker": replica.name, "pid": replica.pid, "standby": not replica.active})
        if replica.dead:  # in between
            self._changed(replica)
        self._dispatch()

    async def _restart(self) -> None:
        first, pause, most = BACK_OFF_S
        await asyncio.sleep(first)
        while not self._closing:
            self.restarts += 1
            try:
                await self._start_one()
                return
            except (WorkerStartError, OSError) as error:
                self._event("worker_failed", {"version": self.version.id, "why": str(error), "next_try_s": pause})
            await asyncio.sleep(pause)
            pause = min(2 * pause, most)

    async def _watch(self) -> None:
        """Deadlines, and workers that show no life."""
        ticks = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            late = self.queue.expire(now) + [call for call in self._again if call.deadline <= now]
            for replica in self.replicas:
                late += [call for call in replica.calls.values() if call.deadline <= now and not call.gone]
            for call in late:
                call.expire()
                self.cancel(call)
            for replica in list(self.replicas):
                if now - replica.heard > self.service.heartbeat_s:
                    self._event("worker_silent", {"worker": replica.name, "pid": replica.pid})
                    replica.lost()
            ticks += 1
            if ticks % 10 == 0:
                self.on_stats(self)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False = the time was not enough."""
        end = time.monotonic() + timeout_s
        while self.running or self.waiting:
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(0.01)
        return True

    async def stop(self) -> None:
        """Ends all workers; what is under way fails."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        replicas = [*self.replicas, *self._starting]
        self.replicas = []
        calls = [call for replica in replicas for call in replica.take_calls()] + [*self._again]
        while (call := self.queue.pop(time.monotonic())) is not None:
            calls.append(call)
        for call in calls:
            call.fail(ApiError(503, "the service is shutting down: send it again", code="draining", retry_after_s=1))
        await asyncio.gather(*(replica.stop() for replica in replicas))
