"""The shapes of answers: a completion, a chat completion, and their chunks."""

from __future__ import annotations

from typing import Any

from lightning_gpt.serving.api_types import ChatRequest
from lightning_gpt.serving.generation import FINISHES, Answer, Job, usage
from lightning_gpt.serving.messages import Piece


def whole(job: Job, answers: list[Answer]) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    chat = isinstance(job.request, ChatRequest)
    choice = _chat_choice if chat else _text_choice
    return {
        "id": job.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": job.created,
        "model": job.served.model,
        "system_fingerprint": job.served.id,
        "choices": [choice(job, index, answer) for index, answer in enumerate(answers)],
        "usage": usage(job.prompt_tokens, sum(answer.tokens for answer in answers)),
    }


def _chat_choice(job: Job, index: int, answer: Answer) -> dict[str, Any]:
    logprobs = None if answer.chances is None else job.served.codec.chat_logprobs(answer.chances)
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": FINISHES[answer.finish],
    }


def _text_choice(job: Job, index: int, answer: Answer) -> dict[str, Any]:
    text, echoed = answer.text, ""
    if job.request.echo:
        echoed = prompt_text(job, index)
        text = echoed + text
    logprobs = None
    if answer.chances is not None:
        prompt = job.orders[index].prompt
        before = (answer.prompt_chances or []) if job.request.echo else []
        logprobs = job.served.codec.completion_logprobs(
            [*before, *answer.chances],
            [*(prompt if job.request.echo else []), *answer.ids],
            0,
        )
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": FINISHES[answer.finish]}


def asked_text(job: Job) -> str:
    """All that was asked, for a log that is to have it."""
    if isinstance(job.request, ChatRequest):
        return "\n".join(f"{message.role}: {message.text}" for message in job.request.messages)
    return "\n".join(prompt_text(job, place * job.request.n) for place in range(len(job.prompts)))


def prompt_text(job: Job, index: int) -> str:
    """The prompt that an echo repeats."""
    given = job.request.prompt
    if isinstance(given, str):
        return given
    place = index // job.request.n
    one = given if isinstance(given[0], int) else given[place]
    return one if isinstance(one, str) else job.served.codec.tokenizer.decode(one)


def chunk(job: Job, choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> dict[str, Any]:
    """One event of a stream."""
    body = {
        "id": job.id,
        "object": "chat.completion.chunk" if isinstance(job.request, ChatRequest) else "text_completion",
        "created": job.created,
        "model": job.served.model,
        "system_fingerprint": job.served.id,
        "choices": choices,
    }
    if job.request.usage_in_stream:
        body["usage"] = used
    return body


def opening(index: int) -> dict[str, Any]:
    """A chat's first choice: who speaks."""
    return {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }


def part(job: Job, index: int, piece: Piece, offset: int) -> dict[str, Any]:
    """What is new of a choice.

    Args:
        offset: characters of the text before it.
    """
    finish = None if piece.finish is None else FINISHES[piece.finish]
    codec = job.served.codec
    if isinstance(job.request, ChatRequest):
        logprobs = None if piece.chances is None else codec.chat_logprobs(piece.chances)
        delta = {"content": piece.text} if piece.text or finish is None else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    logprobs = None if piece.chances is None else codec.completion_logprobs(piece.chances, piece.ids, offset)
    return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish}
