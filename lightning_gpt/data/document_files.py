"""Read documents from .txt, .md, .jsonl and .parquet files (each also .gz), in pieces of bounded length.

Where a long document is cut matters to a tokenizer whose tokens could span the place. Pieces end before a newline
that stands between two letters or digits: the pre-tokenizers of all schemes in text/ split there anyway, so the ids
are those of the uncut document. Only where a piece holds no such newline is it cut at its last newline, or at the
length limit; there a token may differ from the uncut document's, and the text still comes back the same.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

PIECE_CHARACTERS = 1 << 18
"""Longest piece of a document."""

_BETWEEN_WORDS = re.compile(r"[^\W_]\r?\n[^\W_]")


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    last: bool
    """Whether the document ends with this piece."""


def cut(text: str) -> Iterator[Piece]:
    """A document in pieces."""
    return cut_stream(io.StringIO(text, newline=""))


def cut_stream(stream: IO[str]) -> Iterator[Piece]:
    """The text of a stream as one document in pieces; nothing for an empty stream."""
    buffer = ""
    while chunk := stream.read(PIECE_CHARACTERS):
        buffer += chunk
        while len(buffer) > PIECE_CHARACTERS:
            end = _cutting_place(buffer[:PIECE_CHARACTERS])
            yield Piece(buffer[:end], False)
            buffer = buffer[end:]
    if buffer:
        yield Piece(buffer, True)


def _cutting_place(text: str) -> int:
    """Where to cut, > 0, searched in the second half of the text."""
    start = len(text) // 2
    place = None
    for match in _BETWEEN_WORDS.finditer(text, start):
        place = match.start() + 1
    if place is None:
        place = text.rfind("\n", start)
    return place if place > 0 else len(text)


def file_kind(path: Path) -> str | None:
    """ ".txt", ".md", ".jsonl" or ".parquet" by the name, ".gz" left out; None for anything else."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in READERS else None


def read_file(path: Path, text_field: str = "text") -> Iterator[Piece]:
    """The documents of a file, in pieces; empty documents are left out.

    Raises:
        ValueError: naming the file (and line), when it cannot be read, is not UTF-8, or a row has no text.
    """
    kind = file_kind(path)
    assert kind is not None
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            yield from READERS[kind](stream, path, text_field)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason}, byte 0x{error.object[error.start]:02x}): convert it first"
        ) from error


def _read_text(stream: IO[bytes], path: Path, text_field: str) -> Iterator[Piece]:
    # newline="" keeps \r and \r\n as they are
    return cut_stream(io.TextIOWrapper(stream, encoding="utf-8", newline=""))


def _read_jsonl(stream: IO[bytes], path: Path, text_field: str) -> Iterator[Piece]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error.msg}") from error
        text = row.get(text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{path}:{number} has no text in field {text_field!r}: it has {fields}; choose with --text_field"
            )
        yield from cut(_without_surrogates(text, f"{path}:{number}"))


def _without_surrogates(text: str, where: str) -> str:
    """JSON can write half a UTF-16 pair, which no UTF-8 text holds."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where} holds half of a surrogate pair, which is not a character: mend the row")
    return text


def open_parquet(stream: IO[bytes], path: Path) -> Any:
    """A pyarrow.parquet.ParquetFile.

    Raises:
        ValueError: pyarrow is not installed, or it is no such file.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(f"{path}: parquet files need `pip install 'lightning_gpt[data]'`") from error
    try:
        return parquet.ParquetFile(stream)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _read_parquet(stream: IO[bytes], path: Path, text_field: str) -> Iterator[Piece]:
    table = open_parquet(stream, path)
    columns = table.schema_arrow.names
    if text_field not in columns:
        raise ValueError(f"{path} has no column {text_field!r}: it has {', '.join(columns)}; choose with --text_field")
    for batch in table.iter_batches(batch_size=256, columns=[text_field]):
        for index, text in enumerate(batch.column(0).to_pylist()):
            if text is None:
                continue
            if not isinstance(text, str):
                raise ValueError(f"{path}: column {text_field!r} holds {type(text).__name__}, not text (row {index})")
            yield from cut(text)


READERS: dict[str, Callable[[IO[bytes], Path, str], Iterator[Piece]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
