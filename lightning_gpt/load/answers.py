"""Whether answers are right: equal to those that the same requests got when nothing else was going on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_gpt.load.exchange import Exchange
from lightning_gpt.load.prompts import Prompt

ANSWERS_FILE = "answers.jsonl"
MOST_EXAMPLES = 5


class Answers:
    """Texts by prompt and length.

    Args:
        prompts: what is asked, by number.
    """

    def __init__(self, prompts: list[Prompt]) -> None:
        self._keys = [key_of(prompt) for prompt in prompts]
        self._prompts = prompts
        self._texts: dict[tuple[str, int], str] = {}
        self.examples: list[dict[str, Any]] = []
        """The first answers that were wrong: prompt, max_tokens, stream, expected, got."""

    def learn(self, exchange: Exchange) -> None:
        """Takes its text for the right one."""
        self._texts[self._keys[exchange.prompt], exchange.max_tokens] = exchange.text

    def knows(self, prompt: int, max_tokens: int) -> bool:
        """Whether the right text is known."""
        return (self._keys[prompt], max_tokens) in self._texts

    def right(self, exchange: Exchange) -> bool:
        """Whether its text is the right one; a text that nobody knows is."""
        expected = self._texts.get((self._keys[exchange.prompt], exchange.max_tokens))
        if expected is None or expected == exchange.text:
            return True
        if len(self.examples) < MOST_EXAMPLES:
            asked = {"prompt": self._prompts[exchange.prompt], "max_tokens": exchange.max_tokens}
            got = {"stream": exchange.stream, "expected": expected, "got": exchange.text}
            self.examples.append(asked | got)
        return False

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, path: Path) -> None:
        """Learns from a file that `write` wrote.

        Raises:
            ValueError: it is another kind of file.
            OSError: it cannot be read.
        """
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                self._texts[key_of(row["prompt"]), int(row["max_tokens"])] = str(row["answer"])
            except (ValueError, LookupError, TypeError):
                raise ValueError(
                    f'{path}, line {number} must be {{"prompt": ..., "max_tokens": ..., "answer": ...}}'
                ) from None

    def write(self, path: Path) -> None:
        """Writes what is known of the prompts, a line each, whole or not at all."""
        prompts: dict[str, Any] = dict(zip(self._keys, self._prompts))
        temporary = path.with_name(f".{path.name}")
        with open(temporary, "w", encoding="utf-8") as file:
            for (key, max_tokens), text in self._texts.items():
                if key in prompts:
                    row = {"prompt": prompts[key], "max_tokens": max_tokens, "answer": text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)


def key_of(prompt: Prompt) -> str:
    """A prompt as a key of a dictionary."""
    return json.dumps(prompt, sort_keys=True)
