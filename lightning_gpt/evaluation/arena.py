"""Battles between models: everybody answers the same prompts, a judge compares."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

from lightning_gpt.evaluation.answering import answer
from lightning_gpt.evaluation.harness import mean_and_error
from lightning_gpt.evaluation.ratings import Battle, bootstrap, elo, length_controlled_win_rate, win_rate
from lightning_gpt.inference import SamplingConfig
from lightning_gpt.nn import GPT
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

Prompt = str | list[dict[str, Any]]
"""A text, or a conversation that ends with the user's turn."""


class Comparing(Protocol):
    """A judge, as lightning_gpt.rewards makes them."""

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer is the better one, the mean of both orders."""
        ...


def as_text(prompt: Prompt) -> str:
    """What a judge is shown of a prompt: the text, or the turns with their roles where there are several."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


def answers_of(
    net: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    batch_size: int = 32,
    seed: int = 0,
    say: str | None = None,
) -> list[str]:
    """One answer a prompt; a model with a chat template is asked in it, another continues the text.

    Args:
        net: in evaluation mode.
        tokenizer: its tokenizer.
        prompts: texts or conversations.
        max_new_tokens: longest answer.
        temperature: of drawing; 0 = the likeliest answer.
        batch_size: prompts side by side.
        seed: same seed, same answers, whatever the batch size.
        say: name of the model in lines of progress; None = no lines.

    Raises:
        ValueError: messages that the template refuses, or max_new_tokens that fill the context.
    """
    ends: frozenset[int] = frozenset()
    if tokenizer.roles.chat_template is not None:
        template = ChatTemplate(tokenizer)
        turns = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
        asked, ends = [template.prompt_ids(turn) for turn in turns], template.end_ids
    else:
        asked = [[*tokenizer.prefix_ids, *tokenizer.encode(as_text(prompt))] or [0] for prompt in prompts]
    sampling = SamplingConfig(temperature)
    return answer(net, tokenizer, asked, max_new_tokens, (), sampling, ends, batch_size, 1_000_003 * seed, say)


def fight(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], judge: Comparing) -> list[Battle]:
    """Every pair of models over every prompt, prompt by prompt.

    Raises:
        ValueError: the judge gave something other than a probability for each battle.
    """
    shown = [as_text(prompt) for prompt in prompts]
    by_prompt: list[list[Battle]] = [[] for _ in prompts]
    for one, other in combinations(answers, 2):
        scores = judge.compare(shown, answers[one], answers[other])
        if len(scores) != len(prompts) or not all(0 <= score <= 1 for score in scores):
            raise ValueError(f"the judge gave {one} and {other} something else than {len(prompts)} probabilities")
        for row, score in enumerate(scores):
            difference = len(answers[one][row]) - len(answers[other][row])
            by_prompt[row].append(Battle(one, other, score, difference))
        print(f"{one} against {other}: {len(prompts):,} battles", file=sys.stderr, flush=True)
    return [battle for battles in by_prompt for battle in battles]


def standings(battles: Sequence[Battle], names: Sequence[str], draws: int = 200) -> dict[str, Any]:
    """Ratings of the models and win rates of every pair, with 95% intervals.

    Args:
        battles: in their order.
        names: of the models.
        draws: of each bootstrap.
    """
    strengths, ranks = bootstrap(battles, draws=draws), bootstrap(battles, elo, draws)
    table = [
        {"model": name, "bradley_terry": _interval(strengths[name]), "elo": _interval(ranks[name])}
        for name in sorted(names, key=lambda name: -strengths[name][0])
    ]
    pairs = []
    for one, other in combinations(names, 2):
        *share, n = win_rate(battles, one, other)
        controlled = length_controlled_win_rate(battles, one, other, draws)
        pair = {"first": one, "second": other, "n": n, "win_rate": _interval(share)}
        pairs.append(pair | {"length_controlled": _interval(controlled)})
    return {"ratings": table, "pairs": pairs}


def grades(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], judge: Any) -> dict[str, dict[str, float]]:
    """Each model's mean grade over the prompts, every answer graded alone (MT-Bench; Zheng et al., 2023).

    Raises:
        ValueError: the judge compares only.
    """
    if not hasattr(judge, "score"):
        raise ValueError("this judge compares answers and grades none: leave --grade out")
    shown, found = [as_text(prompt) for prompt in prompts], {}
    for name, said in answers.items():
        mean, error = mean_and_error(judge.score(shown, said))
        found[name] = {"mean": mean, "stderr": error, "n": len(said)}
    return found


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Standings as a table and sentences."""
    width = max(len(row["model"]) for row in found["ratings"])
    lines = [f"{'model':<{width}}  {'Bradley-Terry':<24}  Elo"]
    for row in found["ratings"]:
        strength, rank = (_shown(row[which], ".0f") for which in ("bradley_terry", "elo"))
        lines.append(f"{row['model']:<{width}}  {strength:<24}  {rank}")
    for pair in found["pairs"]:
        plain, equal = (_shown(pair[which], ".1%") for which in ("win_rate", "length_controlled"))
        names = f"{pair['first']} beats {pair['second']}"
        lines.append(f"{names}: {plain}, n={pair['n']:,}; with length held equal {equal}")
    for name, grade in found.get("grades", {}).items():
        lines.append(f"{name}: grade {grade['mean']:.3f} ± {grade['stderr']:.3f} (n={grade['n']:,})")
    return lines


def _shown(interval: Mapping[str, float], form: str) -> str:
    return "{value:F} ({low:F} to {high:F})".replace("F", form).format(**interval)


def _interval(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), values))
