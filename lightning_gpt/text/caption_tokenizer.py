"""Captions as rows of one length, which text towers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class CaptionTokenizer(Protocol):
    """Texts -> (B, L) int64; begins, ends and fills up as the text tower expects."""

    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor: ...

    def length(self, text: str) -> int:
        """Tokens that a text needs, those that begin and end it included."""
        ...


class ClipBPE:
    """The byte-pair encoding of CLIP, whose 49,408 tokens are part of open_clip's package.

    Args:
        context_length: L; longer texts lose their end.
    """

    def __init__(self, context_length: int) -> None:
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError as error:
            raise ImportError("CLIP needs `pip install 'lightning_gpt[vision]'`") from error
        self.tokenizer = SimpleTokenizer(context_length=context_length)
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(list(texts))

    def length(self, text: str) -> int:
        """Tokens that a text needs."""
        return len(self.tokenizer.encode(text)) + 2


class OwnCaptions:
    """Any tokenizer of ours; a text ends with end-of-text, which the tower reads (text_cfg.pool_type: eos).

    Args:
        tokenizer: with an end-of-text token.
        context_length: L; longer texts lose their end.
        pad_id: fills rows up.

    Raises:
        ValueError: the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer, context_length: int, pad_id: int = 0) -> None:
        if tokenizer.eos_id is None:
            raise ValueError("the tokenizer of a text tower needs an end-of-text token: prepare it with one")
        self.tokenizer, self.context_length, self.pad_id = tokenizer, context_length, pad_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = torch.full((len(texts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids = [*self.tokenizer.encode(text)[: self.context_length - 1], self.tokenizer.eos_id]
            rows[row, : len(ids)] = torch.tensor(ids)
        return rows

    def length(self, text: str) -> int:
        """Tokens that a text needs."""
        return len(self.tokenizer.encode(text)) + 1
