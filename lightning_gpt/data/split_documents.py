"""Which text trains and which validates: one reading pass for the facts, then the pieces with their split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lightning_gpt.data.sources import Source

SPLIT_RULES = ("tail", "document")


@dataclass(frozen=True)
class Scan:
    """What one pass over a corpus finds out."""

    text_sha256: str
    documents: int
    characters: int
    bytes: int
    alphabet: frozenset[str]
    """Distinct characters."""
    smallest_hash: int
    """Least `document_hash` of all documents."""


class SplitPiece(NamedTuple):
    """A part of a document in its split."""

    split: str
    text: str
    ends: bool
    """The document has no more text in this split."""
    complete: bool
    """The document itself ends here."""


def document_hash(text: str, seed: int) -> int:
    """64 bits that decide a document's split: the same text always falls on the same side, so copies do not leak."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big")


def scan(source: Source, seed: int, advance: Callable[[int], None] = lambda characters: None) -> Scan:
    """Read everything once, in constant memory. ValueError for a corpus without any text."""
    sha256, alphabet = hashlib.sha256(), set()
    documents = characters = size = in_document = 0
    smallest_hash = 1 << 64
    for text, last in source.pieces():
        encoded = text.encode("utf-8")
        if in_document == 0:
            smallest_hash = min(smallest_hash, document_hash(text, seed))
        sha256.update(encoded)
        alphabet.update(text)
        characters += len(text)
        size += len(encoded)
        in_document += len(encoded)
        if last:
            # the length marks where a document ends, so moving text between documents changes the hash
            sha256.update(in_document.to_bytes(8, "big"))
            documents, in_document = documents + 1, 0
        advance(len(text))
    if not characters:
        raise ValueError(f"the corpus {source.name!r} is empty: there is no text in it")
    return Scan(sha256.hexdigest(), documents, characters, size, frozenset(alphabet), smallest_hash)


def split_pieces(source: Source, facts: Scan, rule: str, val_fraction: float, seed: int) -> Iterator[SplitPiece]:
    """All pieces in order, each with its split.

    Args:
        source: the documents.
        facts: the scan of the same source.
        rule: "tail": the last `val_fraction` of all characters validates, the document at the border is cut there.
            "document": whole documents, chosen by hash with probability `val_fraction`; at least one validates.
        val_fraction: share of validation text, in (0, 1).
        seed: of the hash.

    Raises:
        ValueError: one of the splits would be empty.
    """
    if rule == "tail":
        border = int(facts.characters * (1 - val_fraction))
        if not 0 < border < facts.characters:
            empty = "training" if border == 0 else "validation"
            raise ValueError(
                f"val_fraction={val_fraction}: the {empty} split of {facts.characters} characters would be empty"
            )
        return _tail(source, border)
    if facts.documents < 2:
        raise ValueError("split='document' needs at least two documents and the corpus has one: use --split tail")
    threshold = max(int(val_fraction * 2**64), facts.smallest_hash + 1)
    return _by_document(source, threshold, seed)


def _tail(source: Source, border: int) -> Iterator[SplitPiece]:
    position = 0
    for text, last in source.pieces():
        room = border - position
        position += len(text)
        if 0 < room < len(text):
            yield SplitPiece("train", text[:room], True, False)
            yield SplitPiece("val", text[room:], last, last)
        else:
            # a document may also end its training part exactly at the border
            yield SplitPiece("train" if room > 0 else "val", text, last or room == len(text), last)


def _by_document(source: Source, threshold: int, seed: int) -> Iterator[SplitPiece]:
    split = None
    for text, last in source.pieces():
        if split is None:
            split = "val" if document_hash(text, seed) < threshold else "train"
        yield SplitPiece(split, text, last, last)
        if last:
            split = None
