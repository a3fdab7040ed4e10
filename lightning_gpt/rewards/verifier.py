"""Answers that can be checked: a number or word found by a regular expression against a column of the data."""

import re
from typing import Any

PATTERNS = {
    "last_number": r"(-?\d[\d,]*(?:\.\d+)?)(?!.*\d)",
    "hashes": r"####\s*(-?[\d,.]+)",
    "boxed": r"\\boxed\{([^{}]*)\}",
}
"""By name: the last number; GSM8K's "#### 42"; LaTeX's boxed answer."""


class RegexVerifier:
    """1 where what the pattern finds in an answer equals the row's own answer, else 0 (or `partial` when it at least
    finds something).

    Args:
        pattern: last_number, hashes, boxed, or a regular expression whose first group is the answer.
        column: of the data that holds the right answer; the pattern is applied to it too where it fits.
        partial: reward of a wrong answer in the right form.
    """

    def __init__(self, pattern: str = "last_number", column: str = "answer", partial: float = 0.0) -> None:
        try:
            self.pattern = re.compile(PATTERNS.get(pattern, pattern), re.DOTALL)
        except re.error as error:
            raise ValueError(f"reward.pattern={pattern!r} is no regular expression: {error}") from None
        if self.pattern.groups < 1:
            raise ValueError(f"reward.pattern={pattern!r} has no group: put the answer in parentheses")
        self.column, self.partial = column, partial

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1, partial or 0.

        Raises:
            ValueError: the data have no such column, or a row lacks its answer.
        """
        if self.column not in columns:
            known = ", ".join(columns) or "none"
            raise ValueError(f"reward.column={self.column!r} is no column of the data (they have {known})")
        return [self._one(text, right) for text, right in zip(completions, columns[self.column])]

    def _one(self, text: str, right: Any) -> float:
        if right is None:
            raise ValueError(f"a row has no {self.column}: the verifier cannot check its answer")
        given = self.pattern.search(text)
        if given is None:
            return 0.0
        wanted = self.pattern.search(str(right))
        wanted_text = wanted[1] if wanted else str(right)
        return 1.0 if normal(given[1]) == normal(wanted_text) else self.partial


def normal(answer: str) -> str | float:
    """A number as a number (1,000 = 1000.0), other text without case and outer space."""
    text = answer.strip().rstrip(".").replace(",", "").replace("$", "")
    try:
        return float(text)
    except ValueError:
        return text.casefold()


class Weighted:
    """A weighted sum of rewards.

    Args:
        rewards: what is summed.
        weights: of each.
    """

    def __init__(self, rewards: list[Any], weights: list[float]) -> None:
        if len(rewards) != len(weights) or not rewards:
            raise ValueError(f"reward.weights has {len(weights)} numbers for {len(rewards)} rewards: give one each")
        self.rewards, self.weights = rewards, weights

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Sums."""
        each = [reward(prompts, completions, **columns) for reward in self.rewards]
        return [sum(w * score for w, score in zip(self.weights, row)) for row in zip(*each)]


class LengthPenalty:
    """Minus `per_character` for every character beyond `free`.

    Args:
        per_character: taken off for each.
        free: characters that cost nothing.
    """

    def __init__(self, per_character: float = 0.001, free: int = 0) -> None:
        self.per_character, self.free = per_character, free

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """0 or less."""
        return [-self.per_character * max(len(text) - self.free, 0) for text in completions]
