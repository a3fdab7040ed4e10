"""Which window each training sample is: a pure function of (seed, sample number), so that resuming needs one integer.

Samples are numbered 0, 1, 2, ... over all ranks and all steps. None of the classes keeps a position, and none needs
memory that grows with the corpus.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6
_BLOCK = 4096


class WindowSampler(Protocol):
    """Maps sample numbers to windows."""

    def starts(self, first: int, count: int) -> np.ndarray:
        """Start positions, int64 (count,), of samples first, ..., first + count - 1."""
        ...


class RandomWindows:
    """Windows uniformly at random with replacement, as nanoGPT draws them.

    The generator is Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose n-th number is
    computed without the n - 1 before it.

    Args:
        tokens: Length of the split, at least block_size + 1.
        block_size: Tokens that a window feeds to the model.
        seed: Not negative.
    """

    def __init__(self, tokens: int, block_size: int, seed: int) -> None:
        self.positions = tokens - block_size
        self.seed = seed

    def starts(self, first: int, count: int) -> np.ndarray:
        counter, skip = divmod(first, 4)  # one count of Philox gives four 64-bit numbers
        draws = np.random.Philox(key=self.seed, counter=counter).random_raw(skip + count)[skip:]
        # the bias of the remainder is below positions / 2^64
        return (draws % np.uint64(self.positions)).astype(np.int64)


class EpochWindows:
    """Every window of an epoch exactly once, in an order of its own for each epoch.

    An epoch cuts the split into windows that do not overlap, from a random offset below block_size, so that over epochs
    tokens meet different contexts; the fewer than two windows of tokens left at the ends change with the offset. The
    order is a Feistel network over the window numbers, keyed by (seed, epoch), walking along cycles that leave the
    range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): a permutation of any length without
    a table.

    Args:
        tokens: Length of the split, at least block_size + 1.
        block_size: Tokens that a window feeds to the model.
        seed: Not negative.
    """

    def __init__(self, tokens: int, block_size: int, seed: int) -> None:
        self.block_size = block_size
        self.seed = seed
        self.windows = max(1, (tokens - block_size) // block_size)
        self.offsets = min(block_size, tokens - self.windows * block_size)
        # from 3 bits on the orders of a handful of windows are equally likely (chi-square); with fewer they are not
        self._half_bits = np.uint64(max(3, ((self.windows - 1).bit_length() + 1) // 2))
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.windows

    def starts(self, first: int, count: int) -> np.ndarray:
        blocks = [self._block(block) for block in range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)]
        skip = first % _BLOCK
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[skip : skip + count]

    def _block(self, block: int) -> np.ndarray:
        """Starts of samples block * _BLOCK, ...: computed many at a time, since one batch at a time costs ten times."""
        if self._cached[0] != block:
            samples = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
            epoch, number = np.divmod(samples, np.uint64(self.windows))
            keys = _mix(epoch * _GOLDEN ^ _mix(np.full(1, self.seed, np.uint64)))
            order = self._permute(number, keys)
            offset = _mix(keys ^ _GOLDEN) % np.uint64(self.offsets)
            self._cached = (block, (order * np.uint64(self.block_size) + offset).astype(np.int64))
        return self._cached[1]

    def _permute(self, number: np.ndarray, keys: np.ndarray) -> np.ndarray:
        order = self._feistel(number, keys)
        while (outside := np.flatnonzero(order >= self.windows)).size:
            order[outside] = self._feistel(order[outside], keys[outside])
        return order

    def _feistel(self, number: np.ndarray, keys: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        left, right = number >> self._half_bits, number & mask
        for round_ in range(_FEISTEL_ROUNDS):
            # the shift keeps rounds apart: halves are far below 2^32
            word = _mix(keys ^ (right | np.uint64(round_ << 40)))
            left, right = right, left ^ (word >> np.uint64(20) & mask)
        return left << self._half_bits | right


class SequentialWindows:
    """All windows from the first to the last, once: every token but the first is a target exactly once.

    The last window may run past the end of the split; numbers from `len` on give windows without any target.

    Args:
        tokens: Length of the split, at least 2.
        block_size: Tokens that a window feeds to the model.
    """

    def __init__(self, tokens: int, block_size: int) -> None:
        self.windows = -(-(tokens - 1) // block_size)
        self.block_size = block_size

    def __len__(self) -> int:
        """Windows that hold a target."""
        return self.windows

    def starts(self, first: int, count: int) -> np.ndarray:
        return np.arange(first, first + count, dtype=np.int64) * self.block_size


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64 that spreads every bit over all."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
