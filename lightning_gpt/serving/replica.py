"""A worker process as the gateway sees it: started, spoken to, watched, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning_gpt.serving.call import Call
from lightning_gpt.serving.config import VersionConfig
from lightning_gpt.serving.messages import (
    Beat,
    Broken,
    Cancel,
    Failed,
    Hello,
    Order,
    Piece,
    Refused,
    Unpacker,
    pack,
)
from lightning_gpt.serving.record import WorkerStats


class WorkerStartError(RuntimeError):
    """A worker could not begin; its own words."""


class _Line(asyncio.Protocol):
    """The gateway's end of the socket."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._unpacker = replica, Unpacker()

    def data_received(self, data: bytes) -> None:
        for letter in self._unpacker.feed(data):
            self._replica.hear(letter)

    def connection_lost(self, error: Exception | None) -> None:
        self._replica.lost()


class Replica:
    """One worker process.

    Args:
        config: what it serves.
        chat_template: of the model.
        threads: of its computation.
        name: for logs and metrics.
        on_change: called when it has room again, and when it is gone.
    """

    def __init__(
        self,
        config: VersionConfig,
        chat_template: str | None,
        threads: int,
        name: str,
        on_change: Callable[[Replica], None],
    ) -> None:
        self.config, self.name = config, name
        self._chat_template, self._threads, self._on_change = chat_template, threads, on_change
        self.hello: Hello | None = None
        self.stats = WorkerStats()
        self.heard = time.monotonic()
        """When it last showed life."""
        self.calls: dict[int, Call] = {}
        """Under way, by their keys."""
        self.tokens = 0
        """Prompt and new tokens of the calls, as many as they may have."""
        self.active = True
        """False = it stands by."""
        self.dead = False
        self._started: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._outbox: list[Any] = []
        self._next = 0

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    @property
    def room(self) -> int:
        """Calls that it takes now: what it computes, and a few more, so that none of its places is empty while the
        gateway is busy."""
        if self.dead or self.hello is None or not self.active:
            return 0
        return self.hello.max_running + max(self.hello.max_running // 4, 1) - len(self.calls)

    async def start(self) -> Hello:
        """Begins the process and waits until it serves.

        Raises:
            WorkerStartError: it cannot.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        settings = {**self.config.model_dump(), "chat_template": self._chat_template, "threads": self._threads}
        # Its output is the service's error stream: what a library warns of, and the stack of a crash.
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "lightning_gpt.serving.worker",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            )
        ours.setblocking(False)
        self._transport, _ = await loop.create_connection(lambda: _Line(self), sock=ours)
        self._process.stdin.write(json.dumps(settings).encode())
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()
        self._process.stdin.close()
        return await self._started

    def hear(self, letter: Any) -> None:
        """Something that the worker says."""
        self.heard = time.monotonic()
        if isinstance(letter, Piece):
            call = self.calls.get(letter.key)
            if call is None:
                return
            if letter.finish is not None:
                self._forget(letter.key)
            call.give(letter)
            if letter.finish is not None:
                self._on_change(self)
        elif isinstance(letter, Beat):
            self.stats = letter.stats
        elif isinstance(letter, Refused | Broken):
            call = self.calls.get(letter.key)
            if call is not None:
                self._forget(letter.key)
                call.refuse(letter)
                self._on_change(self)
        elif isinstance(letter, Hello):
            self.hello = letter
            self._started.set_result(letter)
        elif isinstance(letter, Failed) and not self._started.done():
            self._started.set_exception(WorkerStartError(letter.message))

    def lost(self) -> None:
        """The worker has hung up: it is dead, or will be."""
        if self.dead:
            return
        self.dead = True
        if not self._started.done():
            self._started.set_exception(WorkerStartError("the worker died before it was ready"))
        self.kill()
        self._on_change(self)

    def submit(self, call: Call) -> None:
        """Gives it a call."""
        self._next += 1
        call.order.key, call.replica = self._next, self
        self.calls[self._next] = call
        self.tokens += call.cost
        self._post(call.order)

    def cancel(self, call: Call) -> None:
        """Nobody waits for a call; its place becomes free when the worker says so."""
        if not call.gone and call.order.key in self.calls:
            call.gone = True
            self._post(Cancel(call.order.key))

    def take_calls(self) -> list[Call]:
        """The calls of a dead worker, to be given to another."""
        calls, self.calls, self.tokens = list(self.calls.values()), {}, 0
        return calls

    def _forget(self, key: int) -> None:
        self.tokens -= self.calls.pop(key).cost

    def _post(self, letter: Order | Cancel) -> None:
        """One write for all that one turn of the event loop has to say."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(letter)

    def _flush(self) -> None:
        letters, self._outbox = self._outbox, []
        if not self.dead:
            self._transport.write(pack(letters))

    def kill(self) -> None:
        """At once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.close()

    async def stop(self) -> None:
        """Ends the process and waits for it."""
        self.dead = True
        self.kill()
        if self._process is not None:
            await self._process.wait()

    async def wait(self) -> int:
        """Until the process has ended; its exit status."""
        return await self._process.wait()
