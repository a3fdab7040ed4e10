"""What a judge's words mean: which of two answers it prefers, and which grade it gives."""

import math
import re
from collections.abc import Mapping
from typing import Any

_LETTER = r"\b([AB])\b(?!\s+or\b)"
_VERDICTS = (
    re.compile(rf"^\W*{_LETTER}\W*$"),
    re.compile(rf"(?:\bis|\b[Aa]nswer|\b[Cc]hoose|\b[Pp]refer|[:*\[(])\W*{_LETTER}"),
    re.compile(r"\b([AB])(?:'s)? (?:answer )?is\b"),
    re.compile(r"^(?!.*\bA\b).*?\b(B)\b", re.DOTALL),
    re.compile(r"^(?!.*\bB\b).*\b(A)\W*$", re.DOTALL),
)
"""Tried in this order: the letter alone; where a verdict names it; as the subject; the only letter there is. `A` is
also an article ("A better answer is B"), so alone it counts at the end only."""
_NO_VERDICT = re.compile(r"\b(?:worse|worst|neither|both|tie|equal|equally)\b", re.IGNORECASE)
"""Words beside which a letter may mean its contrary: undecided rather than wrong."""

_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
_OF_TEN = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/|out of)\s*10\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def spoken_choice(text: str) -> re.Match[str] | None:
    """The letter, group 1, that a text decides for; None where it does not."""
    if _NO_VERDICT.search(text):
        return None
    return next((found for pattern in _VERDICTS if (found := pattern.search(text))), None)


def preference(choice: Mapping[str, Any]) -> float:
    """Probability of A against B in one choice of an OpenAI-compatible answer.

    From the log-probabilities of the token with which it decides, where they are there; else 1 for A and 0 for B. 0.5
    where it says neither.

    Args:
        choice: with `text`, and `logprobs` as OpenAI's chat completions have it, or none.
    """
    tokens = (choice.get("logprobs") or {}).get("content") or []
    text = "".join(token["token"] for token in tokens) if tokens else choice["text"]
    decided = spoken_choice(text)
    if decided is None:
        return 0.5
    end = 0
    for token in tokens:
        end += len(token["token"])
        if end > decided.start(1):
            likely = {"A": 0.0, "B": 0.0}
            for other in token.get("top_logprobs") or []:
                letter = other["token"].strip(" \n([*:\"'")
                if letter in likely:
                    likely[letter] += math.exp(other["logprob"])
            if sum(likely.values()) > 0:
                return likely["A"] / sum(likely.values())
            break
    return float(decided[1] == "A")


def spoken_grade(text: str) -> float | None:
    """The grade that a text gives: MT-Bench's [[7]], 7/10, the number it begins with, else its last number."""
    found = _RATING.search(text) or _OF_TEN.search(text)
    if found:
        return float(found[1])
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    return float(numbers[0] if text.lstrip(" *#\n").startswith(numbers[0]) else numbers[-1])
