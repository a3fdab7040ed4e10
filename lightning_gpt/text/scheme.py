"""Recognise the scheme of a `tokenizer.json` from its structure.

The file has no place for a name of ours that every reader tolerates, so the name is read off what the file says: its
model, pre-tokenizer, normalizer and decoder. A tokenizer saved by anyone else is named by the same rules.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lightning_gpt.text.byte_alphabet import BYTE_TO_CHARACTER

CHARACTER_PATTERN = r"[\s\S]"
"""Splits a text into single characters."""

CONTINUATION = "‿"
"""Prefix of WordPiece pieces inside a word. BERT's "##" would be confused with a literal "##" in the text (a Markdown
heading, say); this character is outside the byte alphabet, so no text can contain it once written in bytes."""

# keys: SHA-256 over "token id" lines of the vocabulary, in the order of ids and without special tokens
TIKTOKEN_VOCABULARIES = {
    "e2c93f5ba6ce8c1fb6cfa715c9a5bb02d37a7789ab8355573c01b2a6b163e44a": "tiktoken:gpt2",
    "db9be34f5dfc8f32ec44f695debdefa4b376ccd2b2e9ed4c5cdbdc2c55af9e01": "tiktoken:cl100k_base",
    "0ac7c09859525e76207d2d3b9538109878a836427244463a35167c7a3cf29bba": "tiktoken:o200k_base",
}
TIKTOKEN_SIZES = {50256, 100256, 199998}


def vocabulary_sha256(vocabulary: dict[str, int]) -> str:
    """Hash of the mapping token -> id."""
    lines = (f"{token} {index}\n" for token, index in sorted(vocabulary.items(), key=lambda item: item[1]))
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def recognise(raw: dict[str, Any]) -> tuple[str, bool]:
    """Scheme and losslessness of a parsed `tokenizer.json`.

    Returns:
        (scheme, lossless): scheme is "char", "byte", "bpe", "wordpiece", "unigram", "tiktoken:NAME" or "huggingface";
        lossless says that decoding gives back every text that encodes, exactly. Where the structure does not prove
        it, lossless is False.
    """
    model = raw["model"]
    kind = model.get("type")
    if kind == "WordLevel":
        is_char = _pattern(raw) == CHARACTER_PATTERN and all(len(token) == 1 for token in model["vocab"])
        return ("char", raw.get("normalizer") is None) if is_char else ("huggingface", False)
    if not _is_byte_level(raw):
        return "huggingface", False
    if kind == "BPE":
        lossless = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
        special = {token["content"] for token in raw.get("added_tokens") or [] if token["special"]}
        vocabulary = {token: index for token, index in model["vocab"].items() if token not in special}
        is_bytes = all(vocabulary.get(character) == byte for byte, character in BYTE_TO_CHARACTER.items())
        if len(vocabulary) == 256 and is_bytes and not model["merges"]:
            return "byte", True
        if len(vocabulary) in TIKTOKEN_SIZES:
            return TIKTOKEN_VOCABULARIES.get(vocabulary_sha256(vocabulary), "bpe"), lossless
        return "bpe", lossless
    if kind == "Unigram":
        return "unigram", True
    if kind == "WordPiece" and model.get("continuing_subword_prefix") == CONTINUATION:
        return "wordpiece", True
    return "huggingface", False


def _steps(part: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder as the list of its steps."""
    if part is None:
        return []
    return part[plural] if part["type"] == "Sequence" else [part]


def _pattern(raw: dict[str, Any]) -> str | None:
    """The regular expression of a pre-tokenizer that is one isolating split."""
    steps = _steps(raw.get("pre_tokenizer"), "pretokenizers")
    if len(steps) == 1 and steps[0]["type"] == "Split" and steps[0]["behavior"] == "Isolated":
        return steps[0]["pattern"].get("Regex")
    return None


def _is_byte_level(raw: dict[str, Any]) -> bool:
    """Whether every byte has a piece and nothing between text and pieces removes or adds a character."""
    model, steps = raw["model"], _steps(raw.get("pre_tokenizer"), "pretokenizers")
    byte_steps = [step for step in steps if step["type"] == "ByteLevel"]
    splits = [step for step in steps if step["type"] == "Split"]
    decoders = [step["type"] for step in _steps(raw.get("decoder"), "decoders")]
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
    pieces = set(BYTE_TO_CHARACTER.values())
    if prefix := model.get("continuing_subword_prefix"):
        pieces |= {prefix + character for character in pieces}
    return (
        raw.get("normalizer") is None
        and len(byte_steps) == 1
        and not byte_steps[0]["add_prefix_space"]
        and len(byte_steps) + len(splits) == len(steps)
        and all(step["behavior"] == "Isolated" for step in splits)
        and decoders[-1:] == ["ByteLevel"]
        and all(piece in vocabulary for piece in pieces)
        and not any(  # special tokens in a text are ordinary text to us, the others are matched
            (token["lstrip"] or token["rstrip"]) and not token["special"] for token in raw.get("added_tokens") or []
        )
    )
