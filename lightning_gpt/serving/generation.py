"""POST /v1/completions and /v1/chat/completions: from a request to calls, and from what comes of them to an answer."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning_gpt.serving.api_types import ChatRequest, CompletionRequest, checked
from lightning_gpt.serving.call import Call, Inbox
from lightning_gpt.serving.config import LimitsConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import ClientGone, Exchange
from lightning_gpt.serving.messages import Order, Piece
from lightning_gpt.serving.served_model import ServedVersion
from lightning_gpt.serving.service import Service
from lightning_gpt.serving.tenants import Tenant

FINISHES = {"eos": "stop", "stop": "stop", "length": "length"}
"""The engine's words -> OpenAI's."""
MAX_TEXTS = 256
"""Prompts times n of one request."""


@dataclass
class Job:
    """A request that is understood."""

    request: CompletionRequest | ChatRequest
    served: ServedVersion
    prompts: list[list[int]]
    orders: list[Order]
    """n for each prompt, in their order."""
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.prompts))


@dataclass(slots=True)
class Answer:
    """All of one text."""

    text: str = ""
    tokens: int = 0
    finish: str | None = None
    ids: list[int] = field(default_factory=list)
    chances: list[Any] | None = None
    prompt_chances: list[Any] | None = None

    def add(self, piece: Piece) -> None:
        """What is new."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish
        if piece.chances is not None:
            self.ids += piece.ids
            self.chances = (self.chances or []) + piece.chances
        if piece.prompt_chances is not None:
            self.prompt_chances = piece.prompt_chances


async def read_job(exchange: Exchange, service: Service, kind: type, tenant: Tenant) -> Job:
    """Reads, checks and tokenizes.

    Raises:
        ApiError: what is wrong with it.
    """
    limits, record = service.config.limits, exchange.record
    request = checked(kind, await exchange.json(limits.max_body_bytes, limits.body_timeout_s))
    record.stream, record.model = request.stream, request.model or ""
    sticky = request.user or exchange.header("x-session-id") or record.request_id
    served = service.admission.choose(service, tenant, request.model, sticky, record)
    record.model, record.version = served.model, served.id
    if isinstance(request, ChatRequest):
        prompts = [served.codec.chat(request.messages)]
        asked, default = request.max_completion_tokens or request.max_tokens, limits.default_chat_tokens
    else:
        given = request.prompt
        many = isinstance(given, list) and not isinstance(given[0], int)
        prompts = [served.codec.prompt(one) for one in (given if many else [given])]
        asked, default = request.max_tokens, limits.default_max_tokens
    record.prompt_tokens = sum(map(len, prompts))
    if request.n > limits.max_n:
        raise ApiError(400, f"n={request.n}: at most {limits.max_n} here", "n", "invalid_value")
    if len(prompts) * request.n > MAX_TEXTS:
        raise ApiError(400, f"{len(prompts)} prompts times n={request.n} are more than {MAX_TEXTS} texts", "n")
    new = [_new_tokens(len(prompt), asked, default, served, limits, kind is ChatRequest) for prompt in prompts]
    if request.min_tokens > min(new):
        raise ApiError(
            400,
            f"min_tokens={request.min_tokens} exceeds the {min(new)} new tokens that there may be",
            "min_tokens",
            "invalid_value",
        )
    most = service.admission.most_tokens(served)
    if most is not None and max(new) > most:
        new, record.degraded = [min(count, most) for count in new], True
    orders = _orders(request, prompts, new, served, tenant)
    prefix = "chatcmpl" if kind is ChatRequest else "cmpl"
    return Job(request, served, prompts, orders, f"{prefix}-{record.request_id}")


def _new_tokens(
    prompt: int, asked: int | None, default: int, served: ServedVersion, limits: LimitsConfig, chat: bool
) -> int:
    """How many tokens a prompt may get.

    Raises:
        ApiError: 400, prompt and answer do not fit.
    """
    field_name = "messages" if chat else "prompt"
    size = served.block_size
    if limits.max_prompt_tokens is not None and prompt > limits.max_prompt_tokens:
        raise ApiError(
            400,
            f"{field_name} has {prompt} tokens, at most {limits.max_prompt_tokens} are taken here: shorten it",
            field_name,
            "context_length_exceeded",
        )
    room = size - prompt + 1  # the last token drawn is never read
    if prompt > size or (asked is not None and asked > room):
        new = "" if asked is None else f" and max_tokens={asked}"
        raise ApiError(
            400,
            f"{field_name} of {prompt} tokens{new} exceed the model's context of {size}: shorten it, or ask for at "
            f"most {max(room, 0)} tokens",
            field_name if prompt > size else "max_tokens",
            "context_length_exceeded",
        )
    if limits.max_tokens is not None and asked is not None and asked > limits.max_tokens:
        raise ApiError(400, f"max_tokens={asked}: at most {limits.max_tokens} here", "max_tokens", "invalid_value")
    return min(default, room, limits.max_tokens or default) if asked is None else asked


def _orders(
    request: CompletionRequest | ChatRequest,
    prompts: list[list[int]],
    new: list[int],
    served: ServedVersion,
    tenant: Tenant,
) -> list[Order]:
    """One for each text.

    Raises:
        ApiError: 400, a value that the model cannot take.
    """
    chat = isinstance(request, ChatRequest)
    bias = None
    if request.logit_bias:
        bias = {int(token): value for token, value in request.logit_bias.items()}
        if max(bias) >= served.codec.vocab_size:
            last = served.codec.vocab_size - 1
            raise ApiError(
                400,
                f"logit_bias has the token {max(bias)}, the vocabulary ends at {last}",
                "logit_bias",
                "invalid_value",
            )
    logprobs = ((request.top_logprobs or 0) if request.logprobs else None) if chat else request.logprobs
    seed = secrets.randbits(62) if request.seed is None else request.seed % (1 << 62)
    echo = not chat and request.echo
    return [
        Order(
            0,
            prompt,
            count,
            request.temperature,
            request.top_k if request.top_k is not None and request.top_k > 0 else None,
            request.top_p if request.top_p < 1 else None,
            request.min_p,
            request.repetition_penalty,
            request.presence_penalty,
            request.frequency_penalty,
            bias,
            seed + place,
            request.stops,
            min(request.min_tokens, count),
            request.ignore_eos,
            logprobs,
            logprobs if echo else None,
            request.stream,
            chat,
            False,
            tenant.name,
        )
        for prompt, count in zip(prompts, new)
        for place in range(request.n)
    ]


def seconds_allowed(exchange: Exchange, limits: LimitsConfig) -> float:
    """Until the request's deadline.

    Raises:
        ApiError: 400, X-Request-Timeout is no positive number.
    """
    text = exchange.header("x-request-timeout")
    if text is None:
        return limits.timeout_s
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ApiError(400, f"the header X-Request-Timeout={text[:40]!r} must be seconds above 0", code="invalid_value")
    return min(seconds, limits.timeout_s)


@asynccontextmanager
async def submitted(
    exchange: Exchange, service: Service, tenant: Tenant, served: ServedVersion, orders: list[Order]
) -> AsyncIterator[Inbox]:
    """The orders are with the pool, and what comes of them is in the inbox. When the block is left, what is not
    finished is cancelled and the tenant's account is settled.

    Raises:
        ApiError: they are not admitted.
    """
    limits, record, inbox = service.config.limits, exchange.record, Inbox()
    allowed = seconds_allowed(exchange, limits)
    deadline = record.received + allowed
    prompt_tokens, new_tokens = sum(len(one.prompt) for one in orders), sum(one.max_tokens for one in orders)
    ticket = service.admission.admit(tenant, served, prompt_tokens, new_tokens, deadline, exchange)
    own = allowed < limits.timeout_s
    calls = [Call(order, inbox, index, deadline, tenant.priority, own) for index, order in enumerate(orders)]
    watcher: asyncio.Task[None] | None = None
    error: BaseException | None = None
    try:
        for call in calls:
            served.pool.submit(call)
        watcher = exchange.watch(lambda: inbox.fail(ClientGone()))
        yield inbox
    except BaseException as caught:
        error = caught
        raise
    finally:
        if watcher is not None:
            watcher.cancel()
        for call in calls:
            if not call.done:
                served.pool.cancel(call)
        record.dispatched = min((call.dispatched for call in calls if call.dispatched), default=None)
        record.retries = max(call.attempts for call in calls)
        ticket.settle(prompt_tokens if record.dispatched else 0, record.completion_tokens, error)


async def gathered(inbox: Inbox, count: int, exchange: Exchange) -> list[Answer]:
    """The whole texts."""
    answers, left = [Answer() for _ in range(count)], count
    while left:
        for call, piece in await inbox.take():
            answers[call.index].add(piece)
            exchange.record.completion_tokens += piece.tokens
            left -= piece.finish is not None
    exchange.record.finish_reason = FINISHES.get(answers[0].finish)
    return answers


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """As OpenAI counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
