"""`meta.json`, the description of a prepared corpus directory (written by `prepare`, read by everything that trains).

A prepared corpus directory holds

    meta.json                 this description
    tokenizer.json            the tokenizer that made the ids, loadable by transformers as well
    train_00000.bin           token ids of one shard, raw little-endian uint16 or uint32
    train_00000.offsets.npy   uint64, where each document starts in the shard, plus the shard's length
    val_00000.bin  ...
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
META_FILE = "meta.json"
TOKENIZER_FILE = "tokenizer.json"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class ShardMeta:
    """One file of token ids."""

    file: str
    """Name of the .bin file inside the corpus directory."""
    tokens: int
    documents: int
    """Pieces that the offsets file delimits; a document cut by a shard's end counts in both shards."""

    @property
    def offsets_file(self) -> str:
        return self.file.removesuffix(".bin") + ".offsets.npy"


@dataclass(frozen=True)
class SplitMeta:
    """Shards and totals of one split. `bytes` and `characters` are those of the text (UTF-8), without separators."""

    shards: list[ShardMeta]
    tokens: int
    documents: int
    bytes: int
    characters: int
    unknown_tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token (separator tokens included): turns nats per token into bits per byte."""
        return self.bytes / max(self.tokens, 1)


@dataclass(frozen=True)
class TokenizerMeta:
    """What must agree between the ids on disk and a model."""

    scheme: str
    fingerprint: str
    vocab_size: int
    eos_id: int | None = None


@dataclass(frozen=True)
class CorpusMeta:
    """The content of `meta.json`."""

    name: str
    tokenizer: TokenizerMeta
    dtype: str
    """"uint16" or "uint32", little-endian."""
    text_sha256: str
    """SHA-256 over all documents' text in order."""
    fingerprint: str
    """SHA-256 over text, tokenizer and recipe: two directories with the same fingerprint hold the same ids."""
    splits: dict[str, SplitMeta]
    recipe: dict[str, Any] = field(default_factory=dict)
    """The settings of `prepare` that decide the ids: split, val_fraction, add_eos, ..."""
    format: int = FORMAT

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    def split(self, name: str) -> SplitMeta:
        """Raises ValueError naming the splits that there are."""
        if name not in self.splits:
            raise ValueError(f"split={name!r}: corpus {self.name!r} has only {sorted(self.splits)}")
        return self.splits[name]

    def shard_paths(self, directory: str | Path, split: str) -> list[Path]:
        """Paths of the split's .bin files, in order."""
        return [Path(directory) / shard.file for shard in self.split(split).shards]

    def offsets_paths(self, directory: str | Path, split: str) -> list[Path]:
        """Paths of the split's .offsets.npy files, in order."""
        return [Path(directory) / shard.offsets_file for shard in self.split(split).shards]

    def save(self, directory: str | Path) -> Path:
        """Write `meta.json` whole or not at all."""
        path = Path(directory) / META_FILE
        temporary = path.with_suffix(f".json.tmp{os.getpid()}")
        temporary.write_text(json.dumps({"format": self.format, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, directory: str | Path) -> CorpusMeta:
        """Read and check a prepared directory.

        Raises:
            ValueError: no such directory, not a prepared corpus, another format, a missing or truncated shard.
        """
        directory = Path(directory)
        path = directory / META_FILE
        if not path.is_file():
            what = "is not a prepared corpus (no meta.json)" if directory.is_dir() else "does not exist"
            raise ValueError(f"{directory} {what}: make it with `lightning-gpt prepare SOURCE --out {directory}`")
        meta = cls._parse(path)
        for split in meta.splits:
            for shard, shard_path in zip(meta.splits[split].shards, meta.shard_paths(directory, split)):
                expected = shard.tokens * meta.numpy_dtype.itemsize
                actual = shard_path.stat().st_size if shard_path.is_file() else None
                if actual != expected:
                    found = "is missing" if actual is None else f"has {actual:,} bytes, not {expected:,}"
                    raise ValueError(f"{shard_path} {found}: prepare the corpus again with --overwrite")
        return meta

    @classmethod
    def _parse(cls, path: Path) -> CorpusMeta:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise ValueError(
                    f"{path}: format {raw['format']!r} is not {FORMAT}, which this version reads: prepare it again"
                )
            splits = {
                name: SplitMeta(**{**split, "shards": [ShardMeta(**shard) for shard in split["shards"]]})
                for name, split in raw["splits"].items()
            }
            meta = cls(**{**raw, "tokenizer": TokenizerMeta(**raw["tokenizer"]), "splits": splits})
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not the description of a prepared corpus ({error!r})") from error
        if meta.dtype not in ("uint16", "uint32"):
            raise ValueError(f"{path}: dtype {meta.dtype!r} is neither uint16 nor uint32")
        return meta
