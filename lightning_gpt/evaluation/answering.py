"""Answers to many prompts: generation side by side that ends at stop strings, in the order of the prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence

from lightning_gpt.inference import SamplingConfig
from lightning_gpt.inference.generation import engine_for
from lightning_gpt.inference.request import Request
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

SECONDS = 10.0
"""Between lines of progress."""


def answer(
    net: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[str] = (),
    sampling: SamplingConfig | None = None,
    ends: Collection[int] = (),
    batch_size: int = 16,
    seed: int = 0,
    say: str | None = None,
) -> list[str]:
    """What the network says to each prompt, up to the first of `stops`.

    Args:
        net: in evaluation mode.
        tokenizer: its tokenizer; special tokens are not written.
        prompts: token ids, at least one each; of one that leaves no room for the answer only the end is read.
        max_new_tokens: per answer.
        stops: an answer ends before any of these strings.
        sampling: how tokens are drawn; None = always the likeliest.
        ends: tokens that end an answer, beside those of the tokenizer.
        batch_size: prompts side by side; as one ends the next begins.
        seed: prompt n draws from seed + n, whatever stands beside it.
        say: what the prompts are, in lines of progress; None = no lines.

    Raises:
        ValueError: max_new_tokens leaves no room for a prompt, or a prompt is empty.
    """
    room = max(net.config.block_size - max_new_tokens, 1)
    if not 1 <= max_new_tokens <= net.config.block_size:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} must be from 1 to {net.config.block_size}, the model's block_size"
        )
    settings = {
        "max_new_tokens": max_new_tokens,
        "sampling": sampling or SamplingConfig(temperature=0.0),
        "stop": stops,
        "end_ids": frozenset(ends) | tokenizer.end_ids,
        "unwritten_ids": frozenset(tokenizer.special_tokens.values()),
    }
    # The longest first: what is left at the end is short.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    requests = [Request(list(prompts[number][-room:]), seed=seed + number, **settings) for number in order]
    texts, done = [""] * len(prompts), 0
    began = told = time.monotonic()
    for place, output in engine_for(net, requests, tokenizer, max_running=batch_size).stream(*requests):
        texts[order[place]] += output.text
        done += output.finish is not None
        if say is not None and output.finish is not None and time.monotonic() - told > SECONDS:
            told = time.monotonic()
            left = (told - began) / done * (len(order) - done)
            print(f"{say}: {done:,} of {len(order):,} answered, {left:.0f} s left", file=sys.stderr, flush=True)
    return texts
