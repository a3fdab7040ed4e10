"""Answers to many prompts: batched generation that ends at stop strings, in the order of the prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence

from torch import Generator

from lightning_gpt.inference import SamplingConfig
from lightning_gpt.inference.generation import Generation
from lightning_gpt.inference.streaming import StopMatcher, StreamDecoder
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
        batch_size: prompts side by side, those of like length together.
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
    sampling = sampling or SamplingConfig(temperature=0.0)
    over = frozenset(ends) | tokenizer.end_ids
    special = set(tokenizer.special_tokens.values())
    limit = min(tokenizer.vocab_size, net.config.vocab_size)
    device = net.token_embedding.weight.device
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    began = told = time.monotonic()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        asked = [list(prompts[number][-room:]) for number in numbers]
        generators = [Generator(device).manual_seed(seed + number) for number in numbers]
        steps = Generation(net, asked, max_new_tokens, sampling, tuple(over), generators, vocab_size=limit)
        decoders = [StreamDecoder(tokenizer, ids) for ids in asked]
        matchers = [StopMatcher(stops) for _ in asked]
        for step in steps:
            for row, token in step:
                if token not in special and token not in over:
                    texts[numbers[row]] += matchers[row].push(decoders[row].push(token))
                if matchers[row].stopped:
                    steps.stop(row)
        for number, decoder, matcher in zip(numbers, decoders, matchers):
            texts[number] += matcher.push(decoder.finish()) + matcher.finish()
        if say is not None and time.monotonic() - told > SECONDS:
            told, done = time.monotonic(), start + len(numbers)
            left = (told - began) / done * (len(order) - done)
            print(f"{say}: {done:,} of {len(order):,} answered, {left:.0f} s left", file=sys.stderr, flush=True)
    return texts
