"""The endpoints that make texts: one function for answers at once, one for streams."""

from __future__ import annotations

import asyncio
import time

import orjson

from lightning_gpt.serving.answers import asked_text, chunk, opening, part, prompt_text, whole
from lightning_gpt.serving.api_types import ChatRequest, CompletionRequest
from lightning_gpt.serving.call import Call, Inbox
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import Exchange
from lightning_gpt.serving.generation import FINISHES, Job, gathered, read_job, submitted, usage
from lightning_gpt.serving.messages import Piece
from lightning_gpt.serving.service import Service

SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last tells nginx to pass every event on at once."""
DONE = b"data: [DONE]\n\n"
GRACE_S = 5.0
"""A reader may lag so far behind a stream's deadline."""


async def completions(exchange: Exchange, service: Service) -> None:
    """POST /v1/completions."""
    await _generate(exchange, service, CompletionRequest)


async def chat_completions(exchange: Exchange, service: Service) -> None:
    """POST /v1/chat/completions."""
    await _generate(exchange, service, ChatRequest)


async def _generate(exchange: Exchange, service: Service, kind: type) -> None:
    tenant = service.admission.identify(exchange)
    service.admission.shed(tenant)
    job = await read_job(exchange, service, kind, tenant)
    if service.config.log.prompts:
        exchange.prompt, exchange.answer = asked_text(job), ""
    kept = service.admission.kept_answer(exchange, job, tenant)
    if kept is not None:
        await exchange.respond_raw(200, kept)
        return
    async with submitted(exchange, service, tenant, job.served, job.orders) as inbox:
        if job.request.stream:
            await _stream(exchange, job, inbox)
            return
        answers = await gathered(inbox, len(job.orders), exchange)
    if exchange.answer is not None:
        exchange.answer = "\n".join(answer.text for answer in answers)
    body = orjson.dumps(whole(job, answers))
    service.admission.keep_answer(exchange, job, tenant, body)
    await exchange.respond_raw(200, body)


async def _stream(exchange: Exchange, job: Job, inbox: Inbox) -> None:
    """Events as pieces come. Until there is one, what goes wrong has a status of its own."""
    news = await inbox.take()
    limit = news[0][0].deadline - time.monotonic() + GRACE_S
    try:
        async with asyncio.timeout(limit):
            await exchange.start(200, SSE)
            await _events(exchange, job, inbox, news)
    except TimeoutError:
        exchange.record.code = "deadline_exceeded"
    except ApiError as error:  # the head has gone: it becomes the last event
        exchange.record.code = error.code
        await exchange.write(_event(error.body()))
        await exchange.write(DONE, more=False)


async def _events(exchange: Exchange, job: Job, inbox: Inbox, news: list[tuple[Call, Piece]]) -> None:
    record, left = exchange.record, len(job.orders)
    chat = isinstance(job.request, ChatRequest)
    lengths = [0] * left
    first = b""
    if chat:
        first = b"".join(_event(chunk(job, [opening(index)])) for index in range(left))
    elif job.request.echo:
        for index in range(left):
            piece = Piece(0, prompt_text(job, index), 0, None, 0.0, [])
            lengths[index] = len(piece.text)
            first += _event(chunk(job, [part(job, index, piece, 0)]))
    while True:
        data = [first]
        first = b""
        for call, piece in news:
            index = call.index
            if record.first_token is None and piece.first:
                record.first_token = piece.first
            record.completion_tokens += piece.tokens
            data.append(_event(chunk(job, [part(job, index, piece, lengths[index])])))
            lengths[index] += len(piece.text)
            if exchange.answer is not None:
                exchange.answer += piece.text
            if piece.finish is not None:
                left -= 1
                record.finish_reason = record.finish_reason or FINISHES.get(piece.finish)
        if not left:
            if job.request.usage_in_stream:
                data.append(_event(chunk(job, [], usage(job.prompt_tokens, record.completion_tokens))))
            data.append(DONE)
            await exchange.write(b"".join(data), more=False)
            return
        await exchange.write(b"".join(data))
        news = await inbox.take()


def _event(content: dict) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
