"""The next tokens of many requests, each drawn in its own way. Legend: B rows, V vocabulary."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_gpt.inference.sampling import SamplingConfig, sample


class Drawn(NamedTuple):
    """A token, and how likely the network held it to be (before temperature and filters), where that was asked for."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    """The likeliest tokens and their log-probabilities, best first."""


class _State:
    """Of one request."""

    def __init__(self, sampling: SamplingConfig, generator: Generator, banned: Tensor | None) -> None:
        self.sampling, self.generator, self.banned = sampling, generator, banned
        self.seen_1V: Tensor | None = None
        self.logprobs: int | None = None


class BatchSampler:
    """Every request has its own settings, its own noise and its own memory of what was drawn.

    Args:
        vocab_size: V.
        device: of the logits.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self._states: dict[int, _State] = {}
        self._special = 0  # requests that take more than the likeliest token

    def add(
        self,
        key: int,
        sampling: SamplingConfig,
        prompt_ids: Sequence[int],
        seed: int,
        banned_ids: Collection[int] = (),
        logprobs: int | None = None,
    ) -> None:
        """A request begins; ids beyond the vocabulary are left out."""
        banned = [index for index in banned_ids if index < self.vocab_size]
        state = _State(
            sampling,
            Generator(self.device).manual_seed(seed),
            torch.tensor(banned, dtype=torch.int64, device=self.device) if banned else None,
        )
        if sampling.repetition_penalty != 1.0:
            state.seen_1V = torch.zeros(1, self.vocab_size, dtype=torch.bool, device=self.device)
            state.seen_1V[0, [index for index in prompt_ids if index < self.vocab_size]] = True
        state.logprobs = logprobs
        self._states[key] = state
        self._special += not self._plain(state)

    def remove(self, key: int) -> None:
        """A request has ended."""
        self._special -= not self._plain(self._states.pop(key))

    @staticmethod
    def _plain(state: _State) -> bool:
        return (
            state.sampling.temperature == 0 and state.seen_1V is None and state.banned is None
        ) and state.logprobs is None

    def draw(self, logits_BV: Tensor, keys: Sequence[int]) -> list[Drawn]:
        """One token for each row, which is counted as drawn."""
        if not self._special:
            return [Drawn(token) for token in logits_BV.argmax(-1).tolist()]
        return [self._one(logits_BV[row : row + 1], self._states[key]) for row, key in enumerate(keys)]

    def _one(self, logits_1V: Tensor, state: _State) -> Drawn:
        raw_1V = logits_1V
        if state.banned is not None:
            logits_1V = logits_1V.index_fill(1, state.banned, -torch.inf)
        token = int(sample(logits_1V, state.sampling, state.generator, state.seen_1V))
        if state.seen_1V is not None:
            state.seen_1V[0, token] = True
        if state.logprobs is None:
            return Drawn(token)
        logprobs_V = torch.log_softmax(raw_1V[0].float(), -1)
        best = logprobs_V.topk(min(state.logprobs, len(logprobs_V)))
        return Drawn(token, float(logprobs_V[token]), list(zip(best.indices.tolist(), best.values.tolist())))
