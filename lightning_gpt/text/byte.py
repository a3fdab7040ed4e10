"""Byte tokenizer: the 256 UTF-8 bytes, id = byte. Lossless, needs no training."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lightning_gpt.text.byte_alphabet import BYTE_TO_CHARACTER
from lightning_gpt.text.roles import END_OF_TEXT
from lightning_gpt.text.tokenizer import Tokenizer


def byte_tokenizer(end_of_text: bool = False) -> Tokenizer:
    """256 ids, or 257 with the special token <|endoftext|> as the last."""
    vocabulary = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if end_of_text:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend)
