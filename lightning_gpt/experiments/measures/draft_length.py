"""What speculative decoding brings over the length of the drafts."""

from collections.abc import Iterator
from time import perf_counter

import torch

from lightning_gpt.experiments.measures.perplexity import held_out_windows
from lightning_gpt.hub import open_model
from lightning_gpt.inference.drafts import Draft, PromptLookup
from lightning_gpt.inference.generation import engine_for
from lightning_gpt.inference.model_drafts import DraftModel, early_exit
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculator import SpeculationStats, Speculator
from lightning_gpt.nn import GPT

REMINDER = 8
"""Tokens of a text that a prompt to be copied shows again."""


def measure_drafts(
    model: str,
    draft: str,
    text: str,
    lengths: list[int],
    prompts: int,
    prompt: int,
    new: int,
    seed: int,
    temperature: float = 0.0,
    copied: bool = False,
    depth: float = 0.5,
    sampled: bool = False,
    dtype: str = "float32",
) -> Iterator[dict[str, float]]:
    """Rows over the length of the drafts: draft/acceptance (the share of the drafted tokens that were kept),
    draft/tokens_per_step and draft/speedup, against the same prompts without drafts, each run just before or after;
    and in each row the same of lengths that adapt, adaptive/acceptance, adaptive/tokens_per_step and adaptive/speedup.

    Args:
        model: checkpoint, model directory or hub name.
        draft: ngram, early_exit, or a model with the same tokenizer.
        text: that prompts are cut from, as held_out_windows.
        lengths: rising draft lengths.
        prompts: how many, one after the other.
        prompt: tokens of each.
        new: tokens that each is continued by.
        seed: of the choice of prompts, and of the draws.
        temperature: 0 = greedy.
        copied: the beginning of each prompt is shown again, so that what follows is likely to be a copy.
        depth: the share of the layers that early_exit computes.
        sampled: drafts are drawn and judged, not the likeliest tokens.
        dtype: of the weights.
    """
    net, tokenizer = open_model(model, getattr(torch, dtype))
    windows = held_out_windows(text, tokenizer, prompts * prompt, prompt, seed)[:, :prompt].tolist()
    texts = [[*ids, *(ids[:REMINDER] if copied else [])] for ids in windows]
    requests = [Request(ids, new, SamplingConfig(temperature), seed, overflow="slide") for ids in texts]
    plans = {length: (length, False) for length in lengths} | {"adaptive": (max(lengths), True)}
    seconds = dict.fromkeys((None, *plans), 0.0)
    kept = dict.fromkeys(plans, (0, 0, 0, 0))
    _run(net, requests[0], None)  # what the first pass takes longer is none of the drafts'
    for place, request in enumerate(requests):
        order = [None, *plans]
        for name in order if place % 2 == 0 else order[::-1]:
            speculator = None
            if name is not None:
                most, adaptive = plans[name]
                speculator = Speculator(_draft(net, draft, depth, sampled), most, adaptive)
            took, stats = _run(net, request, speculator)
            seconds[name] += took
            if name is not None:
                own = (stats.proposed, stats.accepted, stats.tokens, stats.steps)
                kept[name] = tuple(a + b for a, b in zip(kept[name], own))
    found = {
        name: {"acceptance": accepted / max(proposed, 1), "tokens_per_step": made / max(steps, 1)}
        | {"speedup": seconds[None] / seconds[name]}
        for name, (proposed, accepted, made, steps) in kept.items()
    }
    adaptive = {f"adaptive/{key}": value for key, value in found["adaptive"].items()}
    for length in lengths:
        yield {"step": length} | {f"draft/{key}": value for key, value in found[length].items()} | adaptive


def _draft(net: GPT, draft: str, depth: float, sampled: bool) -> Draft:
    if draft == "ngram":
        return PromptLookup()
    if draft == "early_exit":
        return early_exit(net, max(round(depth * net.config.n_layer), 1), make_runner, 1, sampled)
    small, _ = open_model(draft, net.token_embedding.weight.dtype)
    return DraftModel(make_runner(small), net.config.vocab_size, 1, sampled)


def _run(net: GPT, request: Request, speculator: Speculator | None) -> tuple[float, SpeculationStats | None]:
    engine = engine_for(net, [request], drafter=speculator)
    started = perf_counter()
    engine.complete([request])
    return perf_counter() - started, None if speculator is None else speculator.stats()
