"""What is asked: lines of a file, a few sentences of our own, or words strung together to given lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gpt.load.mixture import Mixture

Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a talk."""

BUILTIN = """\
The harbour was quiet when the first boats came home, and
Before the snow fell, the miller had counted his sacks twice and
Nobody in the village could say who had built the old bridge, but
A good question is worth more than a quick answer, because
The train stopped between two stations, and for a while
In the drawer of the desk lay a letter that had never been opened:
She had learned to read the weather from the way the gulls
The clock in the hall struck eleven, although it was only
Three things are needed to bake bread:
If the river rises once more before the spring, then
The engineer looked at the drawing for a long time and said
Far out on the plain a single light moved slowly towards
The recipe asks for patience, a little salt, and
On the last day of the fair the wind turned, so that
My grandmother used to say that a garden
The map showed a path through the forest that
When the bell rang for the second time, all the children
It is easy to be brave on dry land, said the captain, but
The library kept its oldest books in a room where
At noon the workers sat down in the shade of the wall and
The fox came back every evening, always at the same hour, and
To mend a broken cup one needs steady hands and
The king asked his advisers for the truth, and they
Between the two mountains lies a valley in which
The letter began with an apology and ended with
Every lamp in the street had gone out except
The carpenter measured the board, measured it again, and then
Long before there were roads here, people travelled by
The violin had been silent for years until
Rain is the best friend of the farmer and the worst of
There is a rule in this house that nobody may
The old dog lifted its head, listened, and
"""
"""Beginnings of stories, written for this purpose."""


def read_prompts(source: str, words: str | None, distinct: int, seed: int) -> list[Prompt]:
    """The prompts that requests are drawn from.

    Args:
        source: a file, or builtin. A file has a prompt a line, or an object {"prompt": text} or {"messages": [...]}
            a line where it begins with {.
        words: lengths of synthetic prompts, in words, as Mixture reads them; None = those of `source` as they are.
        distinct: number of synthetic prompts.
        seed: of the synthetic ones.

    Raises:
        ValueError: there is no prompt in the file, or a line that cannot be read.
        OSError: the file cannot be read.
    """
    prompts = BUILTIN.splitlines() if source == "builtin" else _from_file(Path(source))
    if words is None:
        return prompts
    vocabulary = [word for prompt in prompts if isinstance(prompt, str) for word in prompt.split()]
    if not vocabulary:
        raise ValueError(f"prompts={source} has no plain text to take words from: leave words or prompts out")
    return list(synthetic(vocabulary, Mixture.parse("words", words), distinct, seed))


def synthetic(vocabulary: list[str], lengths: Mixture, count: int, seed: int) -> list[str]:
    """Prompts of drawn words: no two begin alike but by chance, so caches of prefixes do not help."""
    rng = np.random.default_rng([seed, 2])
    return [
        " ".join(vocabulary[index] for index in rng.integers(len(vocabulary), size=int(length)))
        for length in lengths.draw(rng, count)
    ]


def _from_file(path: Path) -> list[Prompt]:
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            prompts.append(line)
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} begins with {{ and is no JSON object: {error}") from None
        prompt = row.get("messages", row.get("prompt"))
        if not isinstance(prompt, str | list) or not prompt:
            raise ValueError(f'{path}, line {number} needs "prompt": text or "messages": [...]')
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return prompts
