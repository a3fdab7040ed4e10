"""A load from its settings to its result: for coroutines, and for those who have no event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning_gpt.load.answers import Answers
from lightning_gpt.load.arrivals import arrival_times
from lightning_gpt.load.client import Client
from lightning_gpt.load.exchange import OK, Exchange
from lightning_gpt.load.generator import Generator, Second
from lightning_gpt.load.json_reader import loads
from lightning_gpt.load.machine import Watcher, hardware, pin
from lightning_gpt.load.prompts import read_prompts
from lightning_gpt.load.requests import CYCLE, Bodies, Draws
from lightning_gpt.load.result import LoadResult
from lightning_gpt.load.settings import LoadSettings
from lightning_gpt.load.summary import summarize
from lightning_gpt.load.target import parse_target

OPENED_BEFORE = 32
"""Connections, so that the first requests do not wait for theirs."""
SPARE_FILES = 128
MOST_ALONE = 5000
"""Answers that are asked for beforehand to compare with."""


def run_load(settings: LoadSettings, on_second: Callable[[Second], None] | None = None) -> LoadResult:
    """Runs a load in an event loop of its own. SIGINT and SIGTERM end it early, a second one at once; the result is
    that of what was sent.

    Args:
        settings: of the load.
        on_second: is called once a second.

    Raises:
        ValueError: the settings and the server do not fit.
        OSError: nobody listens there, or a file cannot be read.
    """
    try:
        from uvloop import new_event_loop
    except ImportError:  # the extra `serve` brings it
        new_event_loop = None
    machine = hardware()
    before = pin(settings.cpu) if settings.cpu is not None else None
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_interruptible(settings, on_second, machine))
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


async def _interruptible(
    settings: LoadSettings, on_second: Callable[[Second], None] | None, machine: dict[str, Any]
) -> LoadResult:
    loop, generators = asyncio.get_running_loop(), []

    def began(generator: Generator) -> None:
        generators.append(generator)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, generator.stop)

    try:
        return await run_load_async(settings, on_second, began, machine)
    finally:
        if generators and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def run_load_async(
    settings: LoadSettings,
    on_second: Callable[[Second], None] | None = None,
    on_start: Callable[[Generator], None] | None = None,
    machine: dict[str, Any] | None = None,
) -> LoadResult:
    """Runs a load in the event loop that runs. Heeds all settings but `cpu`, which is a process's own affair.

    Args:
        settings: of the load.
        on_second: is called once a second.
        on_start: is given the generator before it sends, whose `stop` ends the load early.
        machine: what it runs on, as machine.hardware; None = it is looked up.

    Raises:
        ValueError, OSError: as run_load.
    """
    target = parse_target(settings.url, settings.allow_remote)
    prompts = read_prompts(settings.prompts, settings.words, settings.distinct, settings.seed)
    due = None
    if settings.concurrency is None:
        due = arrival_times(settings.segments(), settings.arrivals, settings.burst, settings.seed, settings.requests)
        if not len(due):
            raise ValueError(f"no request is due in {settings.seconds:g} s at this rate: raise duration or rate")
    draws = Draws.of(settings, len(prompts), CYCLE if due is None else len(due))
    watcher = Watcher(settings.watch_pids) if settings.watch_pids else None
    allow_files(settings.connections + SPARE_FILES)
    client = Client(target, settings.connections, settings.timeout_s)
    try:
        await client.reach(min(settings.concurrency or OPENED_BEFORE, settings.connections))
        key = settings.api_keys[0] if settings.api_keys else ""
        model = settings.model or await first_model(client, key)
        bodies = Bodies(settings, target, model, prompts)
        answers = None
        if settings.check or settings.expect:
            answers = Answers(prompts)
            kinds = sorted(set(zip(draws.prompt, draws.max_tokens)))
            if settings.expect:
                answers.read(Path(settings.expect))
                if unknown := [kind for kind in kinds if not answers.knows(*kind)]:
                    raise ValueError(
                        f"expect={settings.expect} lacks {len(unknown):,} of the {len(kinds):,} different requests of "
                        "this load: use the prompts and max_tokens that it was made with, or --check"
                    )
            else:
                await ask_alone(client, bodies, kinds, answers, settings)
        generator = Generator(settings, client, bodies, draws, due, answers, on_second)
        gc.collect()
        gc.freeze()  # what lives until the end need not be looked through again and again
        if on_start is not None:
            on_start(generator)
        began = datetime.now(UTC)
        if watcher is not None:
            watcher.start()
        try:
            await generator.run()
        finally:
            seconds = perf_counter() - generator.start
            if watcher is not None:
                watcher.stop()
            await client.close()
            gc.unfreeze()
    finally:
        await client.close()
    machine = (machine or hardware()) | {
        "pinned_core": settings.cpu,
        "event_loop": type(asyncio.get_running_loop()).__module__,
    }
    return summarize(generator, model, began, seconds, machine, watcher.samples if watcher else [])


def allow_files(count: int) -> None:
    """Lets this process open so many files, as far as the system permits."""
    try:
        import resource
    except ImportError:  # Windows, which counts otherwise
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def first_model(client: Client, key: str) -> str:
    """Name of the first model that the server lists.

    Raises:
        ValueError: it lists none.
    """
    status, body = await client.fetch("/models", key)
    try:
        if status == 200:
            return str(loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        pass
    hint = "give --api_key" if status == 401 else "give --model"
    raise ValueError(f"the server's /models names no model (status {status}): {hint}")


async def ask_alone(
    client: Client, bodies: Bodies, kinds: list[tuple[int, int]], answers: Answers, settings: LoadSettings
) -> None:
    """Asks everything that the load will ask, once and one by one, and remembers the answers.

    Args:
        client: sends.
        bodies: makes the requests' bytes.
        kinds: (prompt, max_tokens) of each different request.
        answers: learns.
        settings: of the load.

    Raises:
        ValueError: there is too much to ask, or a request fails even when it is alone.
    """
    if len(kinds) > MOST_ALONE:
        raise ValueError(
            f"{len(kinds):,} different requests are too many to ask beforehand, at most {MOST_ALONE:,}: "
            "give fewer prompts or one max_tokens"
        )
    loop = asyncio.get_running_loop()
    for prompt, most in kinds:
        answered: asyncio.Future[Exchange] = loop.create_future()
        payload = bodies.payload(prompt, most, False, 0)
        given = (answered.set_result, prompt, most)
        client.submit(Exchange(payload, perf_counter(), settings.timeout_s, *given, keep_text=True))
        exchange = await answered
        if exchange.outcome != OK:
            raise ValueError(f"a request fails even when it is alone: {exchange.outcome}")
        answers.learn(exchange)
