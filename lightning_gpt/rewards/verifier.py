"""Answers that can be checked: a number or word found by a regular expression against a column of the data."""

import re
from fractions import Fraction
from typing import Any

from lightning_gpt.rewards.protocol import checked

PATTERNS = {
    "last_number": r"(?<!\d)(-?\d[\d,]*+(?:\.\d++)?+)(?!.*\d)",
    "hashes": r"####\s*(-?\$?[\d,.]+)",
    "boxed": r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}(?!.*\\boxed)",
}
"""By name: the last number (a minus between digits is a subtraction); GSM8K's "#### 42", the first as lm-eval's
strict match has it; LaTeX's boxed answer, the last as for MATH (Hendrycks et al., 2021), with braces two deep in it.
Possessive, so that a policy's thousand digits in a row cost no more than its words."""

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*(\d+)")
_LATEX_RATIO = re.compile(r"([+-]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


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


def normal(answer: str) -> Fraction | str:
    """A number as a number, other text without case and outer space.

    Equal: 1,000 and $1000.00; 50 and 50%; 1/2, 0.5 and \\frac{1}{2}. A comma that does not part thousands is kept, or
    the pair 1,2 would be the number 12. Exponents stay text: 1e999999999 is not worth its memory.
    """
    text = answer.strip().rstrip(".,").replace("\\$", "$").replace("\\%", "%")
    number = text.replace("$", "").removesuffix("%").strip()
    if _THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
    ratio = _RATIO.fullmatch(_LATEX_RATIO.sub(r"\1\2/\3", number))
    try:
        if ratio and int(ratio[2]):
            return Fraction(int(ratio[1]), int(ratio[2]))
        if _DECIMAL.fullmatch(number):
            return Fraction(number)
    except ValueError:  # Python refuses thousands of digits
        pass
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
        """Sums.

        Raises:
            ValueError: as checked, naming the reward of the sum that is at fault.
        """
        each = [checked(reward, prompts, completions, columns) for reward in self.rewards]
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
