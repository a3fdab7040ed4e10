"""Subword tokenizers learnt from text with the `tokenizers` library: BPE, WordPiece and unigram.

All three see the same byte-level words (GPT-2's split pattern, text written in the byte alphabet), so they differ in
the algorithm alone, none has an unknown token, and all are lossless on any text.

- bpe: merges the commonest pair again and again (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).
- wordpiece: longest match from the left, pieces inside a word marked by a prefix (Schuster and Nakajima 2012).
- unigram: the likeliest segmentation under a unigram model of pieces, pruned from a large seed vocabulary as in
  SentencePiece (Kudo 2018, https://arxiv.org/abs/1804.10959). The library takes its seed from the list of distinct
  words, so short words that are part of no other word stay split (" if" as " " + "if"); SentencePiece itself has them.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lightning_gpt.text.byte_alphabet import BYTE_TO_CHARACTER
from lightning_gpt.text.roles import END_OF_TEXT
from lightning_gpt.text.scheme import CONTINUATION
from lightning_gpt.text.tokenizer import Tokenizer

ALPHABET = [BYTE_TO_CHARACTER[byte] for byte in range(256)]
WORD_LIMIT = 100
"""Longest match is quadratic in a word's length: WordPiece sees longer words in parts of this many bytes."""

SMALLEST = {"bpe": 257, "wordpiece": 513, "unigram": 257}
"""Least vocabulary per scheme: all bytes (for WordPiece also inside a word) and <|endoftext|>."""


def train_tokenizer(scheme: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Learn a vocabulary from texts; id 0 is the special token <|endoftext|>.

    Args:
        scheme: "bpe", "wordpiece" or "unigram".
        vocab_size: ids, special token included. Little text may not hold that many pieces; then there are fewer.
        texts: read once.

    Raises:
        ValueError: unknown scheme, or a vocabulary smaller than the bytes.
    """
    if scheme not in SMALLEST:
        raise ValueError(f"scheme={scheme!r} cannot be trained: choose one of {', '.join(SMALLEST)}")
    if vocab_size < SMALLEST[scheme]:
        raise ValueError(f"vocab_size={vocab_size} is too small for {scheme}: give at least {SMALLEST[scheme]}")
    return {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}[scheme](vocab_size, texts)


def _backend(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    backend = _backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def _train_unigram(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    backend = _backend(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def _train_wordpiece(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    backend = _wordpiece_backend({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ALPHABET,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learnt = sorted(backend.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    # The trainer knows only the bytes it saw inside a word. With every byte in both places nothing is ever unknown;
    # the room for them comes from the pieces learnt last.
    basic = [*ALPHABET, *(CONTINUATION + character for character in ALPHABET)]
    known = {END_OF_TEXT, *basic}
    pieces = [piece for piece, _ in learnt if piece not in known][: vocab_size - len(known)]
    vocabulary = {piece: index for index, piece in enumerate([END_OF_TEXT, *basic, *pieces])}
    complete = _wordpiece_backend(vocabulary)
    complete.add_special_tokens([END_OF_TEXT])
    return Tokenizer(complete)


def _wordpiece_backend(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    model = models.WordPiece(
        vocabulary,
        unk_token=END_OF_TEXT,
        max_input_chars_per_word=WORD_LIMIT,
        continuing_subword_prefix=CONTINUATION,
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.Split(tokenizers.Regex(f".{{1,{WORD_LIMIT}}}"), "isolated"),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.Replace(CONTINUATION, ""), decoders.ByteLevel()])
    return backend
