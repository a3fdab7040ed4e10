"""Loaders of language-model batches: sized iterables that the Trainer takes as they are.

A batch is one gather from memory-mapped files, some microseconds, so there are no worker processes and no collating.
Batches are {"input_ids": (B, T), "targets": (B, T)}, int64, targets shifted by one, -100 = no target; with documents
kept apart also "document_ids": (B, T).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from lightning_gpt.data.sampler import SequentialWindows, WindowSampler
from lightning_gpt.data.shards import TokenShards

IGNORE = -100
PREFETCH = 4
"""Batches that the thread makes ahead."""
Batch = dict[str, torch.Tensor]


def window_batch(shards: TokenShards, starts_B: np.ndarray, block_size: int, separate: bool) -> Batch:
    """The batch of the windows that begin at starts_B.

    Args:
        shards: Tokens of the split.
        starts_B: int64 positions; a window may run past the end, where there are no targets.
        block_size: T.
        separate: Give `document_ids`, and no target where the next token is of another document.
    """
    windows_BL = shards.gather(starts_B, block_size + 1)
    targets_BT = windows_BL[:, 1:].astype(np.int64)
    if len(starts_B) and starts_B.max() + block_size >= len(shards):
        targets_BT[starts_B[:, None] + np.arange(1, block_size + 1) >= len(shards)] = IGNORE
    batch = {"input_ids": torch.from_numpy(windows_BL[:, :-1].astype(np.int64))}
    if separate:
        ids_BL = shards.document_ids(starts_B, block_size + 1)
        targets_BT[ids_BL[:, 1:] != ids_BL[:, :-1]] = IGNORE
        batch["document_ids"] = torch.from_numpy(np.ascontiguousarray(ids_BL[:, :-1]))
    return {**batch, "targets": torch.from_numpy(targets_BT)}


class _WindowLoader:
    """Batches of the windows that a sampler numbers; rank r of R takes every R-th sample of a global batch, which thus
    does not depend on how it is shared out.

    Args:
        shards: Tokens of the split.
        sampler: Maps sample numbers to windows.
        batch_size: Windows per batch of this rank.
        block_size: T.
        separate: Keep documents apart (see `window_batch`).
        rank: Of this process.
        world_size: Number of ranks.
        prefetch: Make batches ahead of time in a thread.
        pin_memory: Put batches into page-locked memory, for fast copies to a GPU.
    """

    def __init__(
        self,
        shards: TokenShards,
        sampler: WindowSampler,
        batch_size: int,
        block_size: int,
        *,
        separate: bool = False,
        rank: int = 0,
        world_size: int = 1,
        prefetch: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.shards = shards
        self.windows = sampler  # Lightning would replace an attribute called `sampler`
        self.batch_size = batch_size
        self.block_size = block_size
        self.separate = separate
        self.rank = rank
        self.global_batch_size = batch_size * world_size
        self.world_size = world_size
        self.prefetch = prefetch
        self.pin_memory = pin_memory

    def _batches(self, sample: int, count: int) -> Iterator[Batch]:
        """`count` batches from global sample number `sample` on."""
        batches = self._make(sample, count)
        return _ahead(batches) if self.prefetch else batches

    def _make(self, sample: int, count: int) -> Iterator[Batch]:
        together = self.global_batch_size
        for first in range(sample, sample + count * together, together):
            starts_B = self.windows.starts(first, together)[self.rank :: self.world_size]
            batch = window_batch(self.shards, starts_B, self.block_size, self.separate)
            yield {key: value.pin_memory() for key, value in batch.items()} if self.pin_memory else batch


class TrainLoader(_WindowLoader):
    """An endless stream of batches, dealt out in passes of a nominal length, that resumes at any batch.

    Position is the number of samples consumed by all ranks together. It counts on from pass to pass, so passes need not
    be run to their end, and the batch size and the number of ranks may change on the way.

    Args:
        *args: Those of `_WindowLoader`: shards, sampler, ...
        consumed_samples: Where to begin.
        accumulate: Passes are a multiple of so many batches: the Trainer steps at the end of a pass, with however few
            batches it then has accumulated.
        repeat: Begin every pass at sample 0 (to overfit a few batches).
        batches_done: Counts batches that the training loop is done with. A batch handed out since its last change is
            not consumed yet: a checkpoint written in the middle of it (an exception, Ctrl-C) repeats it on resume.
    """

    def __init__(
        self,
        *args: Any,
        consumed_samples: int = 0,
        accumulate: int = 1,
        repeat: bool = False,
        batches_done: Callable[[], int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.accumulate = accumulate
        self.repeat = repeat
        self._batches_done = batches_done
        self._handed_out = consumed_samples
        self._in_flight: tuple[int, int] | None = None  # batches done, and samples consumed, when it was handed out

    def __len__(self) -> int:
        """Batches in which as many tokens go by as the split has, in whole optimizer steps."""
        return self.accumulate * -(-len(self.shards) // (self.global_batch_size * self.block_size * self.accumulate))

    def __iter__(self) -> Iterator[Batch]:
        if self.repeat:
            self._handed_out = 0
        for batch in self._batches(self._handed_out, len(self)):
            if self._batches_done is not None:
                self._in_flight = (self._batches_done(), self._handed_out)
            self._handed_out += self.global_batch_size
            yield batch

    @property
    def consumed_samples(self) -> int:
        """Windows that training is done with, over all ranks."""
        if self._in_flight is not None and self._batches_done is not None:
            done, before = self._in_flight
            if self._batches_done() == done:
                return before
        return self._handed_out

    def state_dict(self) -> dict[str, int]:
        """One integer, the same on every rank."""
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `consumed_samples`, from the next `iter` on."""
        self._handed_out = int(state["consumed_samples"])
        self._in_flight = None


class EvalLoader(_WindowLoader):
    """Every token of a split but the first as a target, exactly once over all ranks, in a fixed order.

    All ranks get the same number of batches of the same shape. What is left over in the last ones are windows whose
    targets are all -100: sums of losses and of targets stay exact, means of batch means do not.
    """

    def __init__(self, shards: TokenShards, batch_size: int, block_size: int, **kwargs: Any) -> None:
        windows = SequentialWindows(len(shards), block_size)
        super().__init__(shards, windows, batch_size, block_size, **kwargs)
        self._length = -(-len(windows) // self.global_batch_size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(0, len(self))


def _ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, made in a thread up to `PREFETCH` ahead of their use."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            if all(put(batch) for batch in batches):
                put(None)
        except Exception as error:  # raised again where the batch is asked for
            put(error)

    threading.Thread(target=fill, name="token-prefetch", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
