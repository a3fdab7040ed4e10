"""Loaders over examples that are held in memory: the same stream and resume as windows of a corpus have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_gpt.data.loader import EvalLoader, TrainLoader
from lightning_gpt.data.sampler import EpochWindows

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]
"""Examples -> batch. Of no examples it makes a batch that counts for nothing, for ranks that run out of them."""


class ExampleTrainLoader(TrainLoader):
    """Each example once an epoch, in an order of its own for each epoch.

    Args:
        examples: all of them.
        collate: makes a batch.
        batch_size: examples per batch of this rank.
        seed: of the order.
    """

    def __init__(self, examples: Sequence[Any], collate: Collate, batch_size: int, seed: int, **kwargs: Any) -> None:
        order = EpochWindows(len(examples) + 1, 1, seed)  # windows of one example
        super().__init__(examples, order, batch_size, 1, **kwargs)
        self.collate = collate

    def _make(self, sample: int, count: int) -> Iterator[Batch]:
        together = self.global_batch_size
        for first in range(sample, sample + count * together, together):
            chosen = self.windows.starts(first, together)[self.rank :: self.world_size]
            yield self.collate([self.shards[index] for index in chosen])


class ExampleEvalLoader(EvalLoader):
    """Every example once over all ranks, in order. All ranks get the same number of batches; the last may be small."""

    def __init__(self, examples: Sequence[Any], collate: Collate, batch_size: int, **kwargs: Any) -> None:
        super().__init__(range(len(examples) + 1), batch_size, 1, **kwargs)
        self.examples, self.collate = examples, collate

    def _make(self, sample: int, count: int) -> Iterator[Batch]:
        together = self.global_batch_size
        for first in range(sample, sample + count * together, together):
            mine = range(first, min(first + together, len(self.examples)))[self.rank :: self.world_size]
            yield self.collate([self.examples[index] for index in mine])
