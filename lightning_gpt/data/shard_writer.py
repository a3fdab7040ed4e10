"""Write the token ids of one split as shards with document offsets."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lightning_gpt.data.corpus_meta import ShardMeta


class ShardWriter:
    """Appends ids to `SPLIT_00000.bin`, ... and starts the next file every `shard_tokens` tokens.

    Args:
        directory: where the files go; it must exist.
        split: "train" or "val", the beginning of the file names.
        dtype: little-endian unsigned integer.
        shard_tokens: tokens of a full shard.
    """

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shard_tokens: int):
        self.directory, self.split, self.dtype, self.shard_tokens = directory, split, dtype, shard_tokens
        self.shards: list[ShardMeta] = []
        self._file: BinaryIO | None = None
        self._tokens = 0
        self._starts = array("Q")
        self._new_document = True

    def append(self, ids: np.ndarray, ends: bool) -> None:
        """Add ids (T,) of the current document; `ends` says that the next ones belong to another."""
        ids = ids.astype(self.dtype, copy=False)
        while len(ids):
            if self._file is None:
                self._file = open(self.directory / self._name, "wb")  # noqa: SIM115 - closed by _finish_shard
                self._new_document = True
            if self._new_document:
                self._starts.append(self._tokens)
                self._new_document = False
            part, ids = np.split(ids, [self.shard_tokens - self._tokens])
            self._file.write(part.tobytes())
            self._tokens += len(part)
            if self._tokens == self.shard_tokens:
                self._finish_shard()
        self._new_document |= ends

    def close(self) -> list[ShardMeta]:
        """Finish the last file; returns all shards in order."""
        if self._file is not None:
            self._finish_shard()
        return self.shards

    @property
    def _name(self) -> str:
        return f"{self.split}_{len(self.shards):05d}.bin"

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        shard = ShardMeta(self._name, self._tokens, len(self._starts))
        offsets = np.array([*self._starts, self._tokens], dtype="<u8")
        np.save(self.directory / shard.offsets_file, offsets)
        self.shards.append(shard)
        self._file, self._tokens, self._starts = None, 0, array("Q")
