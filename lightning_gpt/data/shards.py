"""Token ids of one split, read from memory-mapped shards in constant memory.

The shards of a split are one logical stream of tokens: positions run on across files, and a window may start in one
shard and end in the next. Shape suffixes: B windows, L = window length (block size + 1).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RESIDENT_BYTES = 256 << 20
"""Mapped pages that may stay in the process' resident memory before they are handed back to the page cache."""

_FAULT_BYTES = 64 << 10
"""What the kernel maps around one page fault (Linux fault-around, 16 pages)."""


class TokenShards:
    """Windows of token ids out of the `.bin` files of one split.

    A batch is one strided gather per shard, with no Python work per window. Memory stays flat however large the corpus:
    files are mapped, and once more than `RESIDENT_BYTES` may have been touched the mappings are told to let go of
    their pages (the data stays in the operating system's page cache).

    Args:
        paths: The shards in order: raw little-endian ids.
        dtype: uint16 or uint32.
        vocab_size: Ids at or beyond it raise when they are read; None: no check.
        offsets_paths: For each shard a .npy of the starts of its documents, plus its length. Needed for
            `document_ids`. A shard's end is always a document's end.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        dtype: np.dtype | str,
        vocab_size: int | None = None,
        offsets_paths: Sequence[str | Path] = (),
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.vocab_size = vocab_size
        self._maps: list[mmap.mmap] = []
        self._shards: list[np.ndarray] = []
        for path in self.paths:
            if path.stat().st_size == 0:  # cannot be mapped, and holds nothing
                self._shards.append(np.empty(0, self.dtype))
                continue
            with open(path, "rb") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._shards.append(np.frombuffer(self._maps[-1], self.dtype))
        self._bases = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._huge = len(self) * self.dtype.itemsize > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED")
        if self._huge:  # a window is a page or two: read no 128 KB around it from the disk
            self._advise(mmap.MADV_RANDOM)
        self._views: dict[tuple[int, int], np.ndarray] = {}
        self._touched = 0
        self._document_starts = self._read_offsets(offsets_paths) if offsets_paths else None

    def __len__(self) -> int:
        """Tokens in all shards."""
        return int(self._bases[-1])

    def gather(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """Read windows.

        Args:
            starts_B: int64 position of each window's first token in the whole split, >= 0.
            length: Tokens per window.

        Returns:
            (B, length) in the dtype of the files. Positions at or beyond the end of the split are 0.

        Raises:
            ValueError: an id is not below `vocab_size`.
        """
        shard_B = np.searchsorted(self._bases[1:], starts_B, side="right")
        first = int(shard_B[0]) if len(shard_B) else 0
        if first < len(self._shards) and (shard_B == first).all() and starts_B.max() + length <= self._bases[first + 1]:
            windows_BL = self._view(first, length)[starts_B - self._bases[first]]
        else:
            windows_BL = self._gather_across(starts_B, shard_B, length)
        if self.vocab_size is not None and windows_BL.size and windows_BL.max() >= self.vocab_size:
            self._raise_beyond_vocabulary(windows_BL, starts_B)
        self._release(len(starts_B), length)
        return windows_BL

    def document_ids(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """Number the documents inside each window, the one at its first token being 0.

        Returns:
            (B, length) int64, not decreasing along a row; positions beyond the end of the split are one more document.
        """
        bounds = self._document_starts
        assert bounds is not None, "TokenShards was made without offsets_paths"
        first_B = np.searchsorted(bounds, starts_B, side="right")  # the first boundary after the window's first token
        count_B = np.searchsorted(bounds, starts_B + length, side="left") - first_B
        rows = np.repeat(np.arange(len(starts_B)), count_B)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        columns = bounds[first_B[rows] + within] - starts_B[rows]
        begins_BL = np.zeros((len(starts_B), length), np.int64)
        begins_BL[rows, columns] = 1
        return begins_BL.cumsum(axis=1)

    def _gather_across(self, starts_B: np.ndarray, shard_B: np.ndarray, length: int) -> np.ndarray:
        windows_BL = np.zeros((len(starts_B), length), self.dtype)
        inside_B = starts_B + length <= self._bases[np.minimum(shard_B + 1, len(self._shards))]
        for shard in np.unique(shard_B[inside_B]):
            rows = np.flatnonzero(inside_B & (shard_B == shard))
            windows_BL[rows] = self._view(int(shard), length)[starts_B[rows] - self._bases[shard]]
        for row in np.flatnonzero(~inside_B):  # few: only windows that cross the end of a shard
            piece = self._read(int(starts_B[row]), length)
            windows_BL[row, : len(piece)] = piece
        return windows_BL

    def _read(self, start: int, length: int) -> np.ndarray:
        """At most `length` tokens from `start` on, across shards."""
        pieces = [
            shard[max(start - base, 0) : max(start + length - base, 0)]
            for shard, base in zip(self._shards, self._bases)
        ]
        return np.concatenate(pieces)

    def _view(self, shard: int, length: int) -> np.ndarray:
        """All windows of a shard as a (tokens - length + 1, length) view without a copy."""
        key = (shard, length)
        if key not in self._views:  # making a view costs more than the gather itself
            self._views[key] = sliding_window_view(self._shards[shard], length)
        return self._views[key]

    def _release(self, windows: int, length: int) -> None:
        self._touched += windows * max(_FAULT_BYTES, length * self.dtype.itemsize)
        if self._touched > RESIDENT_BYTES:
            self._touched = 0
            if self._huge:
                self._advise(mmap.MADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        for mapped in self._maps:
            mapped.madvise(advice)

    def _read_offsets(self, offsets_paths: Sequence[str | Path]) -> np.ndarray:
        starts = []
        for path, base, shard in zip(offsets_paths, self._bases, self._shards, strict=False):
            offsets = np.load(path).astype(np.int64)
            if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(shard) or (np.diff(offsets) < 0).any():
                raise ValueError(f"{path} does not delimit {len(shard):,} tokens: prepare the corpus again")
            starts.append(offsets[:-1] + base)
        # sorted; an empty document shares its start with the next one and has no token to number
        return np.unique(np.concatenate([*starts, [len(self)]]))

    def _raise_beyond_vocabulary(self, windows_BL: np.ndarray, starts_B: np.ndarray) -> None:
        row, column = np.argwhere(windows_BL >= self.vocab_size)[0]
        position = int(starts_B[row] + column)
        shard = int(np.searchsorted(self._bases[1:], position, side="right"))
        raise ValueError(
            f"{self.paths[shard]}: token id {windows_BL[row, column]} at {position - self._bases[shard]:,} is beyond "
            f"the vocabulary of {self.vocab_size}: the file is damaged or of another tokenizer: prepare it again"
        )
