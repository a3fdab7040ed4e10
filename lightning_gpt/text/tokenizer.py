"""One tokenizer class for every scheme, over the `tokenizers` library and its file format `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import tokenizers

from lightning_gpt.text.byte_alphabet import token_to_bytes
from lightning_gpt.text.fast_encode import (
    CharacterTable,
    FastEncoder,
    TiktokenEncoder,
    encode_bytes,
    unknown_character_message,
    vocabulary_of,
)
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.scheme import recognise
from lightning_gpt.text.tiktoken_patterns import PATTERNS


class Tokenizer:
    """Text to ids and back. Made by `from_json` or by the builders in this folder.

    Special tokens that occur in a text are ordinary text unless `allow_special=True`: a corpus or a user cannot
    forge an end of document. No special token is ever added on its own.

    Args:
        backend: a `tokenizers.Tokenizer`.
        roles: which of its tokens begin, end and fill texts.
    """

    def __init__(self, backend: tokenizers.Tokenizer, roles: Roles | None = None):
        self.roles = roles or Roles()
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._json = backend.to_str()
        self._token_bytes: dict[int, bytes] = {}
        self.scheme, self.lossless = recognise(json.loads(self._json))
        self._fast = self._fast_encoder()
        special = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
        self.special_tokens: dict[str, int] = special
        found = self.roles.find(special)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (found[part] for part in ("bos", "eos", "pad", "unk"))

    @classmethod
    def from_json(cls, text: str, roles: Roles | None = None) -> Tokenizer:
        """Read the content of a `tokenizer.json`, ours or any of Hugging Face's. ValueError if it is not one."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not the content of a tokenizer.json: {error}") from error
        return cls(backend, roles)

    def to_json(self) -> str:
        """Content of `tokenizer.json`, for us and for transformers' PreTrainedTokenizerFast(tokenizer_file=...)."""
        return self._json

    def __reduce__(self):
        return (Tokenizer.from_json, (self._json, self.roles))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generated text: eos_id and those that a published model adds."""
        return frozenset((*([] if self.eos_id is None else [self.eos_id]), *self.roles.end_ids))

    @cached_property
    def prefix_ids(self) -> list[int]:
        """What the tokenizer's own template puts before every text: LLaMA's <s>; mostly nothing."""
        template = tokenizers.Tokenizer.from_str(self._json).encode("", add_special_tokens=True).ids
        return template[:1] if template and template[0] == self.bos_id else []

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1: the rows an embedding needs (published vocabularies may have gaps)."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal for tokenizers that are the same."""
        # the library's reader may move a score by one unit in the last place; six digits are the same after a reload
        raw = json.loads(self._json, parse_float=lambda number: float(f"{float(number):.6g}"))
        canonical = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of a text; ValueError for a character outside a character vocabulary."""
        if allow_special and self.special_tokens:
            return self._with_special.encode(text, add_special_tokens=False).ids
        return self.encode_arrays([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], allow_special: bool = False) -> list[list[int]]:
        """Ids of each text."""
        if allow_special and self.special_tokens:
            encodings = self._with_special.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as (T,) uint32, by the scheme's fast path where there is one."""
        if self._fast is not None:
            return [self._fast(text) for text in texts]
        return self.encode_arrays_slow(texts)

    def encode_arrays_slow(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same through the `tokenizers` library alone, as transformers does it."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception:
            if self.scheme == "char":
                self._refuse_unknown_characters(texts)
            raise
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens written out; bytes that are not UTF-8 become U+FFFD."""
        ids = list(map(int, ids))
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            beyond = next(index for index in ids if not 0 <= index < self.vocab_size)
            raise ValueError(f"token id {beyond} is outside the vocabulary of {self.vocab_size}")
        return self._backend.decode(ids, skip_special_tokens=False)

    @cached_property
    def joins_bytes(self) -> bool:
        """Whether a text is the bytes of its tokens and nothing else, so that no token is written differently beside
        others."""
        return (json.loads(self._json)["decoder"] or {}).get("type") == "ByteLevel"

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text; only where `joins_bytes`."""
        found = self._token_bytes.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id) or ""
            try:
                found = token_to_bytes(token)
            except KeyError:  # a special token with characters outside the alphabet
                found = token.encode()
            self._token_bytes[token_id] = found
        return found

    def token_text(self, token_id: int) -> str:
        """Text of one token, for people to read; "" for a gap in the ids."""
        return self.decode([token_id])

    def __repr__(self) -> str:
        return f"Tokenizer(scheme={self.scheme!r}, vocab_size={self.vocab_size}, lossless={self.lossless})"

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        """The same tokenizer, taking special tokens in a text for what they are."""
        return tokenizers.Tokenizer.from_str(self._json)

    def _fast_encoder(self) -> FastEncoder | None:
        if self.scheme == "char":
            return CharacterTable(vocabulary_of(self._json))
        if self.scheme == "byte":
            return encode_bytes
        if self.scheme.startswith("tiktoken:"):
            name = self.scheme.removeprefix("tiktoken:")
            return TiktokenEncoder(name, PATTERNS[name], self._ranks)
        return None

    def _ranks(self) -> dict[bytes, int]:
        special = self.special_tokens
        return {token_to_bytes(t): index for t, index in vocabulary_of(self._json).items() if t not in special}

    def _refuse_unknown_characters(self, texts: Sequence[str]) -> None:
        known = vocabulary_of(self._json)
        for text in texts:
            for index, character in enumerate(text):
                if character not in known:
                    raise ValueError(unknown_character_message(character, index)) from None
