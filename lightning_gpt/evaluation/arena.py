"""Battles between models: everybody answers the same prompts, a judge compares."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from lightning_gpt.evaluation.ratings import Battle, bootstrap, elo, length_controlled_win_rate, win_rate
from lightning_gpt.hub import open_model
from lightning_gpt.inference import SamplingConfig, generate
from lightning_gpt.rewards.judge import Judge
from lightning_gpt.text.chat import ChatTemplate


def answers_of(
    model: str, prompts: Sequence[str], max_new_tokens: int, temperature: float, batch_size: int, seed: int
) -> list[str]:
    """One answer a prompt; a model with a chat template is asked in it."""
    net, tokenizer = open_model(model)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer.json: put it beside config.json")
    if tokenizer.roles.chat_template is not None:
        template = ChatTemplate(tokenizer)
        asked = [template.prompt_ids([{"role": "user", "content": prompt}]) for prompt in prompts]
    else:
        asked = [[*tokenizer.prefix_ids, *tokenizer.encode(prompt)] for prompt in prompts]
    room = net.config.block_size - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} fills the context of {model}: lower it")
    found = []
    ends = tokenizer.end_ids
    limit = min(tokenizer.vocab_size, net.config.vocab_size)
    for start in range(0, len(asked), batch_size):
        some = [ids[-room:] or [0] for ids in asked[start : start + batch_size]]
        generators = [torch.Generator().manual_seed(1_000_003 * seed + start + row) for row in range(len(some))]
        rows = generate(
            net, some, max_new_tokens, SamplingConfig(temperature), tuple(ends), generators, vocab_size=limit
        )
        found += [tokenizer.decode(row[:-1] if row and row[-1] in ends else row) for row in rows]
        print(f"{model}: {len(found):,} of {len(asked):,} answers", file=sys.stderr, flush=True)
    return found


def fight(prompts: Sequence[str], answers: dict[str, list[str]], judge: Judge) -> list[Battle]:
    """Every pair of models over every prompt, prompt by prompt."""
    by_prompt: list[list[Battle]] = [[] for _ in prompts]
    for one, other in combinations(answers, 2):
        scores = judge.compare(prompts, answers[one], answers[other])
        for row, score in enumerate(scores):
            difference = len(answers[one][row]) - len(answers[other][row])
            by_prompt[row].append(Battle(one, other, score, difference))
        print(f"{one} against {other}: {len(prompts):,} battles", file=sys.stderr, flush=True)
    return [battle for battles in by_prompt for battle in battles]


def standings(battles: list[Battle], names: Sequence[str]) -> dict[str, Any]:
    """Ratings of the models and win rates of every pair."""
    ratings, order = bootstrap(battles), elo(battles)
    table = [
        {
            "model": name,
            "bradley_terry": ratings[name][0],
            "low": ratings[name][1],
            "high": ratings[name][2],
            "elo": order[name],
        }
        for name in sorted(names, key=lambda name: -ratings[name][0])
    ]
    pairs = []
    for one, other in combinations(names, 2):
        value, low, high, n = win_rate(battles, one, other)
        controlled = length_controlled_win_rate(battles, one, other)
        pairs.append(
            {
                "first": one,
                "second": other,
                "win_rate": value,
                "low": low,
                "high": high,
                "n": n,
                "length_controlled": controlled,
            }
        )
    return {"ratings": table, "pairs": pairs}
