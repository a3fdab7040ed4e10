"""Drafts for the engine: who gets one, how long, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from lightning_gpt.inference.batch_sampler import BatchSampler
from lightning_gpt.inference.draft_length import Acceptance, StepTimes, best_length
from lightning_gpt.inference.drafts import Ask, Draft
from lightning_gpt.inference.speculation import Proposal

MOST_PAUSE = 512
RISK = 0.02
"""Share of the time that drafts may lose in all, beside one step at the beginning."""


class TextLike(Protocol):
    """What is known of a running text."""

    key: int
    tokens: list[int]


class Drafter(Protocol):
    """What an engine asks for drafts."""

    def propose(self, texts: Sequence[TextLike], sampler: BatchSampler) -> list[Proposal]:
        """A proposal, possibly empty, for each text that goes on in the next step."""
        ...

    def observe(self, outcomes: Mapping[int, tuple[int, int]], tokens: int, seconds: float) -> None:
        """What came of a step: by key of the texts that went on how many tokens were drafted and made; how many tokens
        it read, those of prompts included; the seconds that it took, without drafting."""
        ...

    def remove(self, key: int) -> None:
        """A text has ended."""
        ...


@dataclass(frozen=True)
class SpeculationStats:
    """What came of drafts so far."""

    proposed: int
    """Tokens drafted."""
    accepted: int
    """Tokens kept."""
    steps: int
    """Times that a text went on, with or without a draft."""
    drafted_steps: int
    """Of these, with a draft."""
    tokens: int
    """Tokens made in them."""
    seconds: float
    """That they took, drafts included."""
    plain_seconds: float | None
    """That the same tokens would have taken without drafts, by the steps that had none; None before there was one."""

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were kept."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def tokens_per_step(self) -> float | None:
        """Mean number of tokens that a text grew by."""
        return self.tokens / self.steps if self.steps else None

    @property
    def speedup(self) -> float | None:
        """Estimated: without drafts it would have taken so many times as long."""
        return self.plain_seconds / self.seconds if self.plain_seconds is not None and self.seconds else None

    def __str__(self) -> str:
        if not self.proposed:
            return f"drafts: none in {self.steps} steps"
        speed = "" if self.speedup is None else f", about {self.speedup:.2f}x the speed without"
        return (
            f"drafts: {self.accepted} of {self.proposed} tokens kept ({self.acceptance:.0%}), "
            f"{self.tokens_per_step:.2f} tokens a step{speed}"
        )


class _Text:
    """How drafts of one text fared.

    Args:
        prior: as Acceptance.
    """

    def __init__(self, prior: float) -> None:
        self.acceptance = Acceptance(prior)
        self.wait = 0
        """Steps until a draft is tried again."""
        self.pause = 16
        """How long the next wait will be."""
        self.known = False
        """Whether the draft has read it before."""


class Speculator:
    """Chooses draft lengths so that texts come sooner, and stops drafting where they would not.

    The first step of a batch size has no drafts, for its time is what drafts are measured by, and the first drafts are
    of one token, for what they cost. A text whose drafts do not pay gets none for 16 steps, then for twice as long each
    time; and no draft is made that could, all of it rejected, let the loss of all drafts grow beyond a small share of
    the time.

    Args:
        draft: guesses.
        most: tokens in a draft at most.
        adaptive: False = always as many as allowed.
        max_texts: with more texts in a step there are no drafts: the network is busy enough.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, draft: Draft, most: int = 8, adaptive: bool = True, max_texts: int = 16) -> None:
        for name, value in (("draft_tokens", most), ("max_texts", max_texts)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self._draft, self.most, self.adaptive, self.max_texts = draft, most, adaptive, max_texts
        self.times = StepTimes()
        self._draft_times: dict[int, float] = {}  # seconds of a drafted token, by the number of texts
        self._texts: dict[int, _Text] = {}
        self._acceptance = Acceptance(memory=0.98)  # of all texts; what is expected of a new one
        self._spent = self._reading = 0.0
        self._debt = 0.0  # seconds that drafts have lost so far; negative = won
        self._proposed = self._accepted = self._steps = self._drafted_steps = self._tokens = 0
        self._seconds = self._plain_seconds = 0.0

    def propose(self, texts: Sequence[TextLike], sampler: BatchSampler) -> list[Proposal]:
        """As Drafter."""
        started = perf_counter()
        proposals = [Proposal()] * len(texts)
        lengths = self._lengths(texts)
        asked = [place for place, length in enumerate(lengths) if length]
        if asked:
            asks = [Ask(texts[place].key, texts[place].tokens, lengths[place]) for place in asked]
            for place, own in zip(asked, self._draft.propose(asks, sampler), strict=True):
                proposals[place] = own
        self._spent = perf_counter() - started
        self._time([self._text(texts[place].key) for place in asked], proposals)
        return proposals

    def _time(self, asked: Sequence[_Text], proposals: Sequence[Proposal]) -> None:
        """Learns what a drafted token costs; that a prompt had to be read first does not count."""
        longest = max((len(own.tokens) for own in proposals), default=0)
        self._reading = 0.0 if all(text.known for text in asked) else self._spent
        if longest and not self._reading:
            one, known = self._spent / longest, self._draft_times.get(len(asked))
            self._draft_times[len(asked)] = one if known is None else 0.8 * known + 0.2 * min(one, 2 * known)
        for text in asked:
            text.known = True

    def _lengths(self, texts: Sequence[TextLike]) -> list[int]:
        if not texts or len(texts) > self.max_texts:
            return [0] * len(texts)
        if not self.adaptive:
            return [self.most] * len(texts)
        if not self.times.knows(len(texts)):
            return [0] * len(texts)
        # Of the nearest number of texts that was timed.
        near = min(self._draft_times, key=lambda known: abs(known - len(texts)), default=None)
        cost = 0.0 if near is None else self._draft_times[near]
        most = self._affordable(len(texts), cost) if near is not None else min(self._affordable(len(texts), cost), 1)
        if not most:
            return [0] * len(texts)
        return [self._length(self._text(text.key), len(texts), cost, most) for text in texts]

    def _text(self, key: int) -> _Text:
        if key not in self._texts:
            self._texts[key] = _Text(self._acceptance.rate)
        return self._texts[key]

    def _affordable(self, rows: int, cost: float) -> int:
        """The longest drafts for all texts of which the whole may be lost."""
        plain = self.times.predict(rows)
        left = plain + RISK * self._plain_seconds - self._debt
        losses = (self.times.predict(rows * (1 + most)) - plain + most * cost for most in range(1, self.most + 1))
        return sum(loss <= left for loss in losses)

    def _length(self, text: _Text, rows: int, cost: float, most: int) -> int:
        if text.wait:
            text.wait -= 1
            if text.wait:
                return 0
            return min(2 if cost < 0.1 * self.times.predict(rows) else 1, most)  # tried, whatever is thought of it
        length, _ = best_length(text.acceptance.rate, most, rows, self.times, cost)
        if length:
            text.pause = max(text.pause // 2, 16)
        else:
            # To try a text that the draft has not read costs more.
            text.wait = text.pause if text.known else 4 * text.pause
            text.pause = min(2 * text.pause, MOST_PAUSE)
        return length

    def observe(self, outcomes: Mapping[int, tuple[int, int]], tokens: int, seconds: float) -> None:
        """As Drafter."""
        rows = len(outcomes)
        drafted = sum(proposed for proposed, _ in outcomes.values())
        self.times.add(tokens, seconds)
        for key, (proposed, made) in outcomes.items():
            if proposed:
                kept = min(made - 1, proposed) if made else 0
                self._text(key).acceptance.add(proposed, kept)
                self._acceptance.add(proposed, kept)
                self._proposed += proposed
                self._accepted += kept
        if rows and tokens == rows + drafted:  # a step that read no prompt
            grown = sum(made for _, made in outcomes.values())
            self._steps += rows
            self._drafted_steps += sum(proposed > 0 for proposed, _ in outcomes.values())
            self._tokens += grown
            self._seconds += seconds + self._spent
            if self.times.knows(rows):
                plain = (self.times.predict(rows) if drafted else seconds) * grown / rows
                self._plain_seconds += plain
                self._debt += seconds + self._spent - self._reading - plain
        self._spent = self._reading = 0.0

    def remove(self, key: int) -> None:
        """As Drafter."""
        self._draft.remove(key)
        self._texts.pop(key, None)

    def stats(self) -> SpeculationStats:
        """Of all steps so far."""
        return SpeculationStats(
            self._proposed,
            self._accepted,
            self._steps,
            self._drafted_steps,
            self._tokens,
            self._seconds,
            self._plain_seconds if self._plain_seconds else None,
        )
