"""Rows of JSONL, JSON and parquet files, folders of them, and Hugging Face datasets, each with where it stands."""

from __future__ import annotations

import codecs
import gzip
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_gpt.data.document_files import open_parquet
from lightning_gpt.data.sources import DATASET_PREFIX

Row = dict[str, Any]
KINDS = (".jsonl", ".json", ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:\S+)?")


def read_rows(source: str, limit: int | None = None, split: str = "train") -> list[tuple[str, Row]]:
    """All rows, each with its place ("pairs.jsonl:12") for messages.

    Args:
        source: a .jsonl, .json (a list of objects) or .parquet file, also .gz, a folder of them, or a Hugging Face
            dataset "owner/name" or "owner/name:configuration".
        limit: only the first so many.
        split: of a Hugging Face dataset.

    Raises:
        ValueError: missing or unreadable, naming file and line; no row at all.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        if not files:
            raise ValueError(f"{source} holds no {', '.join(KINDS)} file")
        rows = (row for file in files for row in _read(file))
    elif path.is_file():
        if _kind(path) is None:
            raise ValueError(f"{source}: rows are read from {', '.join(KINDS)} files, each also as .gz")
        rows = _read(path)
    elif source.startswith(DATASET_PREFIX) or (HUB_NAME.fullmatch(source) and not _kind(path)):
        rows = _from_hub(source.removeprefix(DATASET_PREFIX), split)
    else:
        raise ValueError(f"{source} does not exist")
    found = list(islice(rows, limit))
    if not found:
        raise ValueError(f"{source} has no rows")
    return found


def _kind(path: Path) -> str | None:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in KINDS and not path.name.startswith(".") else None


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    kind = _kind(path)
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            if kind == ".parquet":
                yield from _read_parquet(stream, path)
            elif kind == ".json":
                yield from _read_json(stream, path)
            else:
                yield from _read_jsonl(stream, path)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_jsonl(stream: Any, path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield f"{path}:{number}", _object(line.removeprefix(codecs.BOM_UTF8), f"{path}:{number}")


def _object(text: bytes, where: str) -> Row:
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds a {type(row).__name__}, not a row with named fields")
    return row


def _read_json(stream: Any, path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of rows with named fields; one row a line is .jsonl")
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def _read_parquet(stream: Any, path: Path) -> Iterator[tuple[str, Row]]:
    table = open_parquet(stream, path)
    number = 0
    for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            yield f"{path} row {number}", row
            number += 1


def _from_hub(name: str, split: str) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name}: Hugging Face datasets need `pip install 'lightning_gpt[data]'`") from error
    dataset, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, configuration or None, split=split, streaming=True)
    except Exception as error:  # the library raises its own and the network's errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} is no file or folder here, and Hugging Face does not give it: {reason}") from error
    for index, row in enumerate(rows):
        yield f"{name} row {index}", dict(row)
