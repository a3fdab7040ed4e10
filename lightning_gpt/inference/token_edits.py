"""Bias, penalties and bans of one request: what changes single logits before the filters.

Legend: B rows, V vocabulary, N changed logits.

Only the ids that occurred or are named are touched, never the whole vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.inference.sampling import SamplingConfig


class TokenEdits:
    """The ids of a request whose logits change, and how often each was generated.

    Args:
        sampling: bias and penalties.
        prompt_ids: count as seen for the repetition penalty, not as generated.
        banned_ids: never drawn.
    """

    def __init__(self, sampling: SamplingConfig, prompt_ids: Sequence[int], banned_ids: Collection[int] = ()) -> None:
        self.sampling = sampling
        self._counting = sampling.counts_generated or sampling.repetition_penalty != 1.0
        seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        bias = {**(sampling.logit_bias or {}), **dict.fromkeys(banned_ids, -np.inf)}
        ids = sorted({*seen, *bias})
        self._place = {index: place for place, index in enumerate(ids)}
        self._ids = np.array(ids, dtype=np.int64)
        self._numbers = np.zeros((3, len(ids)), dtype=np.float32)
        """Bias, seen, times generated."""
        self._numbers[0] = [bias.get(index, 0.0) for index in ids]
        self._numbers[1] = [index in seen for index in ids]

    def __bool__(self) -> bool:
        """Whether anything changes, now or later."""
        return self._counting or bool(self._place)

    def count(self, token: int) -> None:
        """One more token was generated."""
        if not self._counting:
            return
        place = self._place.get(token)
        if place is None:
            place = len(self._place)
            self._place[token] = place
            if place == len(self._ids):  # room doubles, so that growing costs little
                room = max(place, 32)
                self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.int64)))
                self._numbers = np.concatenate((self._numbers, np.zeros((3, room), dtype=np.float32)), 1)
            self._ids[place] = token
        self._numbers[1, place] = 1
        self._numbers[2, place] += 1

    def table(self, then: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) and bias, seen, times generated (3, N), as if the tokens `then` had been generated too."""
        used = len(self._place)
        ids, numbers = self._ids[:used], self._numbers[:, :used]
        if not then or not self._counting:
            return ids, numbers
        numbers = numbers.copy()
        new: dict[int, int] = {}
        for token in then:
            place = self._place.get(token)
            if place is None:
                new[token] = new.get(token, 0) + 1
            else:
                numbers[1, place] = 1
                numbers[2, place] += 1
        if new:
            ids = np.concatenate((ids, np.fromiter(new, np.int64)))
            fresh = np.array([[0.0] * len(new), [1.0] * len(new), list(new.values())], dtype=np.float32)
            numbers = np.concatenate((numbers, fresh), 1)
        return ids, numbers


@dataclass(frozen=True)
class RowEdits:
    """Edits for one row of logits."""

    row: int
    edits: TokenEdits
    then: Sequence[int] = ()
    """Tokens to count as generated before the row."""


def edit_logits(logits_BV: Tensor, rows: Sequence[RowEdits]) -> Tensor:
    """The logits with every row's edits: bias, repetition penalty, then frequency and presence penalties.

    As process_logits does for rows of one configuration. The given logits stay as they are.
    """
    tables = [(own, *own.edits.table(own.then)) for own in rows]
    sizes = [len(ids) for _, ids, _ in tables]
    if not sum(sizes):
        return logits_BV
    device = logits_BV.device
    where = np.stack((np.repeat([own.row for own, _, _ in tables], sizes), np.concatenate([t[1] for t in tables])))
    row_N, id_N = torch.from_numpy(where).to(device).unbind(0)
    settings = [own.edits.sampling for own in rows]
    each = [(s.repetition_penalty, s.frequency_penalty, s.presence_penalty) for s in settings]
    each = np.array(each, dtype=np.float32).T
    numbers = np.concatenate((np.concatenate([t[2] for t in tables], 1), np.repeat(each, sizes, 1)))
    bias_N, seen_N, count_N, repetition_N, frequency_N, presence_N = torch.from_numpy(numbers).to(device).unbind(0)
    x_N = logits_BV[row_N, id_N] + bias_N
    x_N = torch.where(seen_N > 0, torch.where(x_N > 0, x_N / repetition_N, x_N * repetition_N), x_N)
    x_N = x_N - frequency_N * count_N - presence_N * (count_N > 0)
    return logits_BV.index_put((row_N, id_N), x_N)
