"""Loaders that open pictures in worker processes, with the same stream and resume as windows of a corpus have."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from lightning_gpt.data.loader import EvalLoader, TrainLoader
from lightning_gpt.data.pictures import PictureError
from lightning_gpt.data.sampler import EpochWindows

Batch = dict[str, Any]
Make = Callable[[int, torch.Generator | None], Any]
"""Index of an example, generator of its augmentation (None: as it is) -> the example; PictureError when it cannot be
used. torch's and Python's global generators are seeded too, for transforms that know no other."""
Collate = Callable[[list[Any]], Batch]
SKIPPED = "skipped"
"""Key of a batch under which the messages of pictures stand that could not be used."""
_STRIDE = 0x9E3779B97F4A7C15


class _Samples(Dataset):
    """Examples by sample number, each drawn with a generator that follows from (seed, number) alone."""

    def __init__(self, make: Make, count: int, seed: int, replace: bool) -> None:
        self.make, self.count, self.seed, self.replace = make, count, seed, replace

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[str]]:
        """The example, and messages of those that could not be used on the way to it."""
        number, index = key
        messages: list[str] = []
        for further in range(self.count if self.replace else 1):
            try:
                return self._made(number, (index + further) % self.count), messages
            except PictureError as error:
                messages.append(str(error))
        if self.replace:
            raise PictureError(f"not one picture can be used, the first: {messages[0]}")
        return None, messages

    def _made(self, number: int, index: int) -> Any:
        if not self.replace:
            return self.make(index, None)
        seed = ((self.seed + 1) * _STRIDE + number) % 2**63
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            try:
                return self.make(index, torch.Generator().manual_seed(seed))
            finally:
                random.setstate(state)


class _WithMessages:
    """Collates examples and keeps the messages; a class, so that it can be sent to worker processes."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, made: list[tuple[Any, list[str]]]) -> Batch:
        batch = self.collate([example for example, _ in made if example is not None])
        return batch | {SKIPPED: [message for _, messages in made for message in messages]}


def _opened(
    samples: _Samples, collate: Collate, keys: Iterator[list[tuple[int, int]]], workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches in the order of their keys. Pictures that could not be used are told of at the 1st, 2nd, 4th, ..."""
    loader = DataLoader(
        samples,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_WithMessages(collate),
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own, or every pass would draw from the global one
    )
    told = count = 0
    for batch in loader:
        messages = batch.pop(SKIPPED)
        count += len(messages)
        if messages and count >= max(1, 2 * told):
            told = count
            rank_zero_warn(f"pictures left out so far: {count}, the last: {messages[-1]}")
        yield batch


class PictureTrainLoader(TrainLoader):
    """Each example once an epoch, in an order of its own for each epoch; one that cannot be used is replaced by the one
    after it.

    Args:
        count: number of examples.
        make: opens and transforms one.
        collate: makes a batch.
        batch_size: examples per batch of this rank.
        seed: of order and augmentation.
        workers: processes that open pictures; 0: this one does.
    """

    def __init__(
        self, count: int, make: Make, collate: Collate, batch_size: int, seed: int, workers: int = 0, **kwargs: Any
    ) -> None:
        order = EpochWindows(count + 1, 1, seed)  # windows of one example
        super().__init__(range(count), order, batch_size, 1, **kwargs)
        self.samples, self.collate, self.workers = _Samples(make, count, seed, True), collate, workers
        self._stream: tuple[int, Iterator[Batch]] | None = None  # next sample number, batches from there on

    def __len__(self) -> int:
        """Batches of an epoch, the last one filled up from the next."""
        return max(1, super().__len__())

    def _make(self, sample: int, count: int) -> Iterator[Batch]:
        if self._stream is None or self._stream[0] != sample:  # workers are kept from pass to pass
            batches = _opened(self.samples, self.collate, self._keys(sample), self.workers, self.pin_memory)
            self._stream = (sample, batches)
        batches = self._stream[1]
        for _ in range(count):
            batch = next(batches)
            sample += self.global_batch_size
            self._stream = (sample, batches)
            yield batch

    def _keys(self, sample: int) -> Iterator[list[tuple[int, int]]]:
        """(sample number, example) of this rank's batches, without end."""
        together = self.global_batch_size
        while True:
            numbers = range(sample, sample + together)[self.rank :: self.world_size]
            chosen = self.windows.starts(sample, together)[self.rank :: self.world_size]
            yield list(zip(numbers, map(int, chosen), strict=True))
            sample += together


class PictureEvalLoader(EvalLoader):
    """Every example once over all ranks, in order; those that cannot be used are left out. All ranks get the same
    number of batches; the last may be small or empty."""

    def __init__(
        self, count: int, make: Make, collate: Collate, batch_size: int, workers: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(range(count + 1), batch_size, 1, **kwargs)
        self.samples, self.collate, self.workers = _Samples(make, count, 0, False), collate, workers

    def _make(self, sample: int, count: int) -> Iterator[Batch]:
        return _opened(self.samples, self.collate, self._keys(sample, count), self.workers, self.pin_memory)

    def _keys(self, sample: int, count: int) -> Iterator[list[tuple[int, int]]]:
        together = self.global_batch_size
        for first in range(sample, sample + count * together, together):
            mine = range(first, min(first + together, self.samples.count))[self.rank :: self.world_size]
            yield [(index, index) for index in mine]


def first_examples(make: Make, count: int, seed: int | None) -> Sequence[Any]:
    """The first examples, augmented as in training when there is a seed; for looking at them."""
    samples = _Samples(make, count, seed or 0, seed is not None)
    return [example for number in range(count) if (example := samples[number, number][0]) is not None]
