"""Fast twins of the `tokenizers` library's encoding for three schemes; tests hold that their ids are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property

import numpy as np

FastEncoder = Callable[[str], np.ndarray]
"""text -> (T,) uint32 ids, special tokens taken as ordinary text."""


class CharacterTable:
    """Characters to ids by one gather in a table over code points.

    Args:
        vocabulary: id of each character.
    """

    def __init__(self, vocabulary: dict[str, int]):
        code_points = np.array([ord(character) for character in vocabulary], dtype=np.int64)
        self.table = np.full(int(code_points.max(initial=0)) + 2, -1, dtype=np.int64)
        self.table[code_points] = list(vocabulary.values())

    def __call__(self, text: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        # the last entry of the table is always -1: everything above the largest known code point lands there
        ids = self.table[np.minimum(code_points, len(self.table) - 1)]
        if ids.size and ids.min() < 0:
            index = int(np.argmax(ids < 0))
            raise ValueError(unknown_character_message(text[index], index))
        return ids.astype(np.uint32)


def unknown_character_message(character: str, index: int) -> str:
    return (
        f"character {character!r} (U+{ord(character):04X}, at position {index}) is not in the character vocabulary: "
        "prepare the vocabulary from text that holds it, or use a byte-level tokenizer (byte, bpe:4096)"
    )


def encode_bytes(text: str) -> np.ndarray:
    """Ids of the byte scheme: the UTF-8 bytes themselves."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32)


class TiktokenEncoder:
    """tiktoken's encoder over the ranks of a byte-level vocabulary; built at the first use.

    Args:
        name: name of the encoding, for messages only.
        pattern: regular expression that splits text before merging.
        ranks: id of each byte string.
    """

    def __init__(self, name: str, pattern: str, ranks: Callable[[], dict[bytes, int]]):
        self.name, self.pattern, self.ranks = name, pattern, ranks

    @cached_property
    def _encoding(self):
        import tiktoken

        return tiktoken.Encoding(self.name, pat_str=self.pattern, mergeable_ranks=self.ranks(), special_tokens={})

    def __call__(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint32)


def vocabulary_of(tokenizer_json: str) -> dict[str, int]:
    """The model's token -> id of a `tokenizer.json` whose model stores a mapping."""
    return json.loads(tokenizer_json)["model"]["vocab"]
