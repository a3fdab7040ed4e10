"""Losses of counting: what the validation split costs under unigram and bigram counts of the train split.

A network has learnt something about a language only below these. Both see exactly the targets of the validation loop
with documents joined: every token of the split but the first.

- unigram, add-one smoothing: p(b) = (n(b) + 1) / (N + V);
- bigram, interpolated with the unigram as Witten and Bell (1991) do: p(b | a) = (n(a b) + r(a) p(b)) / (n(a) + r(a)),
  where r(a) is the number of distinct tokens seen after a; an `a` never seen leaves p(b) alone.

Every token so has a probability above zero, and every distribution sums to one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.data.shards import TokenShards

DENSE_VOCABULARY = 4096
"""Up to here pairs are counted in a V x V table (128 MiB), beyond in sorted lists of the pairs that occur."""

PIECE = 1 << 22
"""Tokens read at a time."""


@dataclass(frozen=True)
class CorpusBaseline:
    """Mean cross-entropy of the validation targets, in nats per token."""

    uniform: float
    """ln V: every token equally likely."""
    unigram: float
    bigram: float
    bytes_per_token: float
    """UTF-8 bytes per validation token."""
    targets: int
    """Tokens that the means run over."""
    vocab_size: int

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss of this corpus in a unit that does not depend on the tokenizer."""
        return nats_per_token / math.log(2) / self.bytes_per_token


class PairCounts:
    """How often each token follows each other one, as sorted codes previous * V + next with their counts.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._dense = np.zeros(vocab_size**2, np.int64) if vocab_size <= DENSE_VOCABULARY else None
        self._sparse = (np.empty(0, np.int64), np.empty(0, np.int64))
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, tokens: np.ndarray) -> None:
        """Counts the adjacent pairs of a piece of the stream, (L,)."""
        codes = tokens[:-1].astype(np.int64) * self.vocab_size + tokens[1:]
        if self._dense is not None:
            self._dense += np.bincount(codes, minlength=len(self._dense))
            return
        self._waiting.append(np.unique(codes, return_counts=True))
        if sum(len(part) for part, _ in self._waiting) > len(self._sparse[0]):
            self._merge()  # when the list doubles: merging after every piece would be quadratic

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes that occur, ascending, and how often each does."""
        if self._dense is not None:
            codes = np.flatnonzero(self._dense)
            return codes, self._dense[codes]
        self._merge()
        return self._sparse

    def _merge(self) -> None:
        parts = [self._sparse, *self._waiting]
        codes, place = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, place, np.concatenate([part for _, part in parts]))
        self._sparse, self._waiting = (codes, counts), []


def corpus_baseline(data_dir: str | Path, piece: int = PIECE) -> CorpusBaseline:
    """Counts the train split, measures the validation split; memory does not grow with the number of tokens.

    Args:
        data_dir: prepared corpus directory.
        piece: tokens read at a time.

    Raises:
        ValueError: no prepared corpus, no validation split, a split without a pair of tokens, a damaged shard.
    """
    meta = CorpusMeta.load(data_dir)
    vocab_size = meta.tokenizer.vocab_size
    unigrams = np.zeros(vocab_size, np.int64)
    seen = PairCounts(vocab_size)
    for tokens in _pieces(meta, data_dir, "train", piece):
        unigrams += np.bincount(tokens[1:], minlength=vocab_size)
        seen.add(tokens)
    unigrams[_first_token(meta, data_dir)] += 1  # pieces overlap by one token, so only the first is left to count
    asked = PairCounts(vocab_size)
    for tokens in _pieces(meta, data_dir, "val", piece):
        asked.add(tokens)

    codes, weight = asked.pairs()
    previous, following = np.divmod(codes, vocab_size)
    unigram = (unigrams + 1) / (unigrams.sum() + vocab_size)
    bigram = _witten_bell(seen.pairs(), vocab_size, codes, previous, unigram[following])
    return CorpusBaseline(
        uniform=math.log(vocab_size),
        unigram=float(-(weight @ np.log(unigram[following])) / weight.sum()),
        bigram=float(-(weight @ np.log(bigram)) / weight.sum()),
        bytes_per_token=meta.split("val").bytes_per_token,
        targets=int(weight.sum()),
        vocab_size=vocab_size,
    )


def unigram_entropy(meta: CorpusMeta, data_dir: str | Path, tokens: int = 1 << 20) -> float:
    """Entropy of how often each token occurs in the train split, nats per token: the loss of knowing only that.

    Args:
        meta: of the corpus.
        data_dir: its directory.
        tokens: read at most so many, in pieces spread evenly over the split.

    Raises:
        ValueError: a damaged shard.
    """
    total = meta.split("train").tokens
    length = min(total, 1 << 12)
    pieces = max(1, min(tokens, total) // length)
    starts = np.linspace(0, total - length, pieces).astype(np.int64)
    counts = np.bincount(_open(meta, data_dir, "train").gather(starts, length).ravel())
    share = counts[counts > 0] / counts.sum()
    return float(-(share @ np.log(share)))


def _witten_bell(
    seen: tuple[np.ndarray, np.ndarray], vocab_size: int, asked: np.ndarray, previous: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    """p(next | previous) of the pairs `asked`, where `lower` is the unigram's p(next)."""
    codes, counts = seen
    before = codes // vocab_size
    total = np.bincount(before, weights=counts, minlength=vocab_size)[previous]
    distinct = np.bincount(before, minlength=vocab_size)[previous]
    place = np.minimum(np.searchsorted(codes, asked), len(codes) - 1)
    count = np.where(codes[place] == asked, counts[place], 0)
    known = np.maximum(total + distinct, 1)  # 0 only where `previous` was never seen
    return np.where(total > 0, (count + distinct * lower) / known, lower)


def _open(meta: CorpusMeta, data_dir: str | Path, split: str) -> TokenShards:
    return TokenShards(meta.shard_paths(data_dir, split), meta.numpy_dtype, meta.tokenizer.vocab_size)


def _first_token(meta: CorpusMeta, data_dir: str | Path) -> int:
    return int(_open(meta, data_dir, "train").gather(np.zeros(1, np.int64), 1)[0, 0])


def _pieces(meta: CorpusMeta, data_dir: str | Path, split: str, piece: int) -> Iterator[np.ndarray]:
    """The stream of a split in pieces of piece + 1 tokens that overlap by one, so that no pair is lost or doubled."""
    tokens = meta.split(split).tokens
    if tokens < 2:
        raise ValueError(f"{data_dir}: its {split} split has {tokens} token(s), and a pair needs 2: prepare more text")
    shards = _open(meta, data_dir, split)
    for start in range(0, tokens - 1, piece):
        yield shards.gather(np.array([start]), min(piece + 1, tokens - start))[0]
