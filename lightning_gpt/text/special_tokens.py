"""Special tokens that a tokenizer did not come with, such as the one that stands for a picture."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken

from lightning_gpt.text.tokenizer import Tokenizer

IMAGE_TOKEN = "<image>"
"""Stands for a picture in a text (LLaVA; Liu et al., 2023)."""


def with_special_token(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """A tokenizer that has a special token more, behind its last id; the same one when it has the token already.

    All other texts keep their ids. Where the new id is beyond a network's vocab_size, `hub.growth.grown` makes room.

    Args:
        tokenizer: stays as it is.
        token: its text, such as <image>.

    Raises:
        ValueError: an empty token, one that is an ordinary piece of the vocabulary, or ids with gaps before the last,
            which the `tokenizers` library would fill twice.
    """
    if not token:
        raise ValueError("a special token must have a text, such as <image>")
    if token in tokenizer.special_tokens:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if backend.token_to_id(token) is not None:
        raise ValueError(f"{token!r} is an ordinary piece of this tokenizer's vocabulary: choose another special token")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    if backend.token_to_id(token) != tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {backend.get_vocab_size() - 1} tokens, but ids up to {tokenizer.vocab_size - 1}: no "
            "token can be added to ids with gaps"
        )
    return Tokenizer(backend, tokenizer.roles)
