"""What guesses how texts go on: the interface, and guesses from the text itself.

Model drafts are in model_drafts.py; how long a guess should be, in draft_length.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_gpt.inference.batch_sampler import BatchSampler
from lightning_gpt.inference.speculation import Proposal


@dataclass(frozen=True)
class Ask:
    """A text to guess at."""

    key: int
    """Names it from call to call."""
    tokens: Sequence[int]
    """All of it. It usually grows by what was kept; it may also be another text than at the last call."""
    count: int
    """Tokens wanted, at least one; fewer may come."""


class Draft(Protocol):
    """Guesses at several texts at once. It keeps what it needs of each between calls, by its key."""

    def propose(self, asks: Sequence[Ask], sampler: BatchSampler) -> list[Proposal]:
        """One proposal for each ask, possibly empty.

        Args:
            asks: the texts.
            sampler: knows how each is sampled; for drafts that draw as the network would.
        """
        ...

    def remove(self, key: int) -> None:
        """Forgets a text, which may be unknown."""
        ...


class _Index:
    """Where the n-grams of one growing text last went on."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.following: dict[tuple[int, ...], int] = {}


class PromptLookup:
    """The text goes on as it did when its last tokens occurred before (Saxena, 2023, prompt lookup); no network.

    The longest n-gram that occurred wins, its latest occurrence first. Where that runs into the end of the text, it
    goes on with the guess itself, so a loop of any period is followed.

    Args:
        longest: tokens of an n-gram at most.
        shortest: and at least: fewer give more guesses, and worse ones.

    Raises:
        ValueError: not 1 <= shortest <= longest.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest={shortest} and longest={longest} must be 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest
        self._texts: dict[int, _Index] = {}

    def propose(self, asks: Sequence[Ask], sampler: BatchSampler | None = None) -> list[Proposal]:
        """As Draft."""
        return [self._one(ask) for ask in asks]

    def remove(self, key: int) -> None:
        """As Draft."""
        self._texts.pop(key, None)

    def _one(self, ask: Ask) -> Proposal:
        index = self._texts.setdefault(ask.key, _Index())
        text, old = index.tokens, len(index.tokens)
        if list(ask.tokens[:old]) != text:
            index = self._texts[ask.key] = _Index()
            text, old = index.tokens, 0
        text += ask.tokens[old:]
        for place in range(max(old, 1), len(text)):  # n-grams that end before `place`, now that it is there
            for size in range(self.shortest, min(self.longest, place) + 1):
                index.following[tuple(text[place - size : place])] = place
        for size in range(min(self.longest, len(text)), self.shortest - 1, -1):
            place = index.following.get(tuple(text[-size:]))
            if place is not None:
                return Proposal(self._going_on(text, place, ask.count))
        return Proposal()

    @staticmethod
    def _going_on(text: Sequence[int], place: int, count: int) -> list[int]:
        guess = list(text[place : place + count])
        period = len(text) - place
        while len(guess) < count:
            guess.append(guess[-period])
        return guess
