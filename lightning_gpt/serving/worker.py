"""A worker process: one engine, one thread that reads orders, steps, and sends what is new.

Started by the gateway (replica.py) as `python -m lightning_gpt.serving.worker FD` with its settings as JSON on standard
input. It ends when the gateway does, for then the socket does.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

import psutil
import torch

from lightning_gpt.hub import open_model
from lightning_gpt.inference import Engine, EngineConfig, Request, SamplingConfig, make_runner
from lightning_gpt.inference.drafter_choice import open_drafter
from lightning_gpt.inference.request import Output, TokenLogprob
from lightning_gpt.inference.row_filters import NotFiniteError
from lightning_gpt.nn import GPT
from lightning_gpt.nn.caches import cache_type
from lightning_gpt.serving.messages import (
    Beat,
    Broken,
    Cancel,
    Chance,
    Failed,
    Hello,
    Order,
    Piece,
    Refused,
    Unpacker,
    pack,
)
from lightning_gpt.serving.record import WorkerStats
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

BEAT_S = 0.5
"""Time between signs of life."""


class _Work:
    """An order under way, and what is not sent of it yet."""

    __slots__ = ("chances", "finish", "first", "ids", "order", "prompt", "text", "tokens")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.first = 0.0
        self._empty()

    def _empty(self) -> None:
        self.text, self.tokens, self.finish = "", 0, None
        self.ids: list[int] = []
        self.chances: list[Chance] = []
        self.prompt: list[Chance | None] | None = None

    def add(self, output: Output, now: float) -> None:
        """One more output of the engine."""
        if output.token is not None:
            self.first = self.first or now
            self.tokens += 1
            if output.logprob is not None and output.finish != "eos":  # the end is not part of the text
                self.ids.append(output.token)
                self.chances.append(_chance(output.logprob))
        if output.prompt is not None:
            self.prompt = [None if one is None else _chance(one) for one in output.prompt]
        self.text += output.text
        self.finish = output.finish

    def piece(self) -> Piece:
        """What is new, which counts as sent."""
        chances = self.chances if self.order.logprobs is not None else None
        piece = Piece(self.order.key, self.text, self.tokens, self.finish, self.first, self.ids, chances, self.prompt)
        self._empty()
        return piece


def _chance(logprob: TokenLogprob) -> Chance:
    return logprob.token, logprob.logprob, logprob.top


class Worker:
    """Drives an engine by a socket.

    Args:
        connection: to the gateway.
        net: for embeddings.
        engine: makes the texts.
        turn_ends: tokens that end a chat's answer.
    """

    def __init__(self, connection: socket.socket, net: GPT, engine: Engine, turn_ends: Iterable[int]) -> None:
        self.connection, self.net, self.engine = connection, net, engine
        tokenizer = engine.tokenizer
        self._ends, self._turn_ends = frozenset(tokenizer.end_ids), frozenset(turn_ends)
        self._unwritten = frozenset(tokenizer.special_tokens.values())
        self._unpacker = Unpacker()
        self._works: dict[int, _Work] = {}  # by the engine's keys
        self._keys: dict[int, int] = {}  # the gateway's -> the engine's
        self._letters: list[Any] = []
        self._busy_s, self._beaten = 0.0, 0.0
        self._before, self._drafts_before = engine.stats(), self._drafts()  # of the warm-up, which nobody asked for
        self._process = psutil.Process()

    def run(self) -> None:
        """Until the gateway hangs up."""
        engine = self.engine
        while True:
            wait = 0.0 if engine.busy else max(self._beaten + BEAT_S - time.monotonic(), 0.0)
            if select.select([self.connection], [], [], wait)[0] and not self._read():
                return
            if engine.busy:
                started = time.monotonic()
                outputs = self._step()
                now = time.monotonic()
                self._busy_s += now - started
                self._sort(outputs, now)
            now = time.monotonic()
            if now - self._beaten >= BEAT_S:
                self._beaten = now
                self._letters.append(Beat(self.stats()))
            if self._letters:
                letters, self._letters = self._letters, []
                self.connection.sendall(pack(letters))

    def _step(self) -> list[Output]:
        """One step; requests from whose logits nothing can be drawn are told so, and the others go on."""
        while True:
            try:
                return self.engine.step()
            except NotFiniteError as error:
                if not error.keys:
                    raise
                for key in error.keys:
                    order = self._works[key].order
                    self._letters.append(Broken(order.key, str(error)))
                    self.engine.cancel(key)

    def _read(self) -> bool:
        """Follows what was ordered; False = the gateway is gone."""
        data = self.connection.recv(1 << 20)
        if not data:
            return False
        for letter in self._unpacker.feed(data):
            if isinstance(letter, Order):
                self._take(letter)
            elif isinstance(letter, Cancel) and letter.key in self._keys:
                self.engine.cancel(self._keys[letter.key])
        return True

    def _take(self, order: Order) -> None:
        try:
            if order.embed:
                self._letters.append(
                    Piece(order.key, "", 0, "length", time.monotonic(), [], vector=self._vector(order))
                )
                return
            key = self.engine.add(self._request(order))
        except ValueError as error:
            self._letters.append(Refused(order.key, str(error)))
            return
        except Exception as error:  # of this order alone: nothing of it is in the engine
            self._letters.append(Broken(order.key, f"{type(error).__name__}: {error}"))
            return
        self._works[key] = _Work(order)
        self._keys[order.key] = key

    def _request(self, order: Order) -> Request:
        sampling = SamplingConfig(
            order.temperature,
            order.top_k,
            order.top_p,
            order.min_p,
            order.repetition_penalty,
            order.presence_penalty,
            order.frequency_penalty,
            order.logit_bias,
        )
        ends = () if order.ignore_eos else self._turn_ends if order.chat else self._ends
        return Request(
            order.prompt,
            order.max_tokens,
            sampling,
            order.seed,
            order.stop,
            ends,
            order.min_tokens,
            unwritten_ids=self._unwritten,
            logprobs=order.logprobs,
            prompt_logprobs=order.prompt_logprobs,
            priority=order.priority,
            tenant=order.tenant,
        )

    @torch.inference_mode()
    def _vector(self, order: Order) -> list[float]:
        """Mean of the states before the head, of length 1."""
        device = self.net.token_embedding.weight.device
        hidden_1TC = self.net.hidden(torch.tensor([order.prompt], device=device))
        return torch.nn.functional.normalize(hidden_1TC[0].float().mean(0), dim=0).tolist()

    def _sort(self, outputs: list[Output], now: float) -> None:
        """What a step gave, to whom it belongs."""
        touched: dict[int, _Work] = {}
        for output in outputs:
            work = self._works[output.key]
            work.add(output, now)
            if output.finish is not None:
                del self._works[output.key], self._keys[work.order.key]
                touched[output.key] = work
            elif work.order.stream:
                touched[output.key] = work
        # What wrote nothing yet (half a character, a possible stop string) goes with what follows.
        self._letters += [
            work.piece() for work in touched.values() if work.finish is not None or work.text or work.chances
        ]

    def stats(self) -> WorkerStats:
        """A snapshot."""
        stats, before = self.engine.stats(), self._before
        drafts = [now - then for now, then in zip(self._drafts(), self._drafts_before)]
        return WorkerStats(
            running=stats.running,
            waiting=stats.waiting,
            max_running=self.engine.config.max_running,
            cache_use=stats.cache_use,
            steps=stats.steps - before.steps,
            prompt_tokens=stats.prompt_tokens - before.prompt_tokens,
            shared_tokens=stats.shared_tokens - before.shared_tokens,
            generated_tokens=stats.generated_tokens - before.generated_tokens,
            preemptions=stats.preemptions - before.preemptions,
            drafted_tokens=drafts[0],
            accepted_tokens=drafts[1],
            busy_s=self._busy_s,
            resident_bytes=self._process.memory_info().rss,
        )

    def _drafts(self) -> tuple[int, int]:
        """Tokens proposed and accepted since the process began."""
        drafter = self.engine.drafter
        drafts = None if drafter is None else drafter.stats()
        return (0, 0) if drafts is None else (drafts.proposed, drafts.accepted)


def build(settings: dict[str, Any]) -> tuple[GPT, Engine, ChatTemplate]:
    """The network, its engine and its template, from a VersionConfig's fields.

    Raises:
        FileNotFoundError, ValueError, ImportError: one line that says what cannot be served, and why.
    """
    path, device = settings["path"], settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = None if settings["dtype"] == "auto" else getattr(torch, settings["dtype"])
    if dtype is None and device.startswith("cuda") and torch.cuda.is_bf16_supported():
        dtype = torch.bfloat16
    net, tokenizer = open_model(path, dtype, device)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer.json: put its tokenizer's file beside config.json")
    net.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    cache = settings["cache_dtype"]
    config = EngineConfig(
        settings["max_running"],
        settings["token_budget"],
        cache_bytes=settings["cache_bytes"],
        cache_dtype=None if cache is None else cache_type(cache),
    )
    drafter = None
    if settings["draft"] is not None:
        drafter = open_drafter(
            settings["draft"], net, tokenizer, 8, config.max_running, lambda name: open_model(name, dtype, device)
        )
    engine = Engine(make_runner(net), tokenizer, config, drafter=drafter)
    return net, engine, ChatTemplate(tokenizer, settings["chat_template"])


def hello(path: str, net: GPT, engine: Engine, template: ChatTemplate) -> Hello:
    """What the gateway needs to know."""
    tokenizer: Tokenizer = engine.tokenizer
    chatty = template.source != ChatTemplate(tokenizer, "plain").source
    parameters = sum(parameter.numel() for parameter in net.parameters())
    about = {
        "layers": net.config.n_layer,
        "width": net.config.n_embd,
        "runner": type(engine.runner).__name__,
        "cache_blocks": engine.cache.blocks,
    }
    return Hello(
        tokenizer.to_json(),
        tokenizer.roles,
        engine.vocab_size,
        net.config.block_size,
        parameters,
        engine.config.max_running,
        chatty,
        about=about,
    )


def warm_up(engine: Engine) -> None:
    """What the first requests would wait for: memory is touched, kernels are chosen."""
    new = min(4, engine.runner.config.block_size)
    engine.complete([Request([0], new, SamplingConfig(temperature)) for temperature in (0.0, 1.0)])


def main(fd: int) -> None:
    """The process. Signals of the terminal are the gateway's business."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    settings = json.load(sys.stdin)
    connection = socket.socket(fileno=fd)
    if settings["cpus"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, settings["cpus"])
    torch.set_num_threads(settings["threads"])
    try:
        net, engine, template = build(settings)
        warm_up(engine)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        connection.sendall(pack([Failed(" ".join(str(error).split()))]))
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()
    connection.sendall(pack([hello(settings["path"], net, engine, template)]))
    try:
        Worker(connection, net, engine, template.end_ids).run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the gateway is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
