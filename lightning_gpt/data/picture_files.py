"""Pictures with what is said of them: tables, folders, webdataset shards and Hugging Face datasets."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_gpt.data.pictures import SUFFIXES, open_picture
from lightning_gpt.data.row_files import HUB_NAME, read_rows
from lightning_gpt.data.sources import DATASET_PREFIX

TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
IMAGE_FIELDS = ("image", "file_name", "filename", "image_path", "filepath", "path", "jpg", "png", "img")
CAPTION_FIELDS = ("caption", "captions", "text", "txt", "title", "sentence", "sentences")
KEYWORD_FIELDS = ("keywords", "tags")
LABEL_FIELDS = ("label", "class", "category")


@dataclass(frozen=True)
class TarMember:
    """Where a picture lies in a shard."""

    shard: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Picture:
    """One picture with its words; opened only when it is used."""

    where: str
    """For messages: file and line, or the picture's own name."""
    source: Path | bytes | TarMember
    captions: tuple[str, ...] = ()
    """Sentences or names, the first is the one that is tested with."""
    keywords: tuple[str, ...] = ()
    """Single words, of which captions can be made."""
    label: str | None = None
    """Class, for classification."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """All further columns."""

    def open(self, background: tuple[int, int, int] = (255, 255, 255)) -> Any:
        """As pictures.open_picture."""
        source = self.source
        if isinstance(source, TarMember):
            source = _read(source.shard, source.offset, source.size)
        return open_picture(source, str(source) if isinstance(source, Path) else self.where, background)


def caption_of(one: Picture, keywords: int = 0) -> str:
    """What a picture is tested with: its first caption, and so many of its keywords."""
    first = (one.captions or one.keywords)[0]
    return ", ".join([first, *[word for word in one.keywords if word.lower() != first.lower()][:keywords]])


def read_pictures(source: str, limit: int | None = None, split: str = "train") -> list[Picture]:
    """All pictures of a source, in its order; they are not opened.

    Args:
        source: one of
            - a table (.jsonl, .json, .parquet, .csv, .tsv, the first three also .gz) with a column `image` (path beside
              the table, or bytes) and `caption` or `captions`, optionally `keywords` and `label`;
            - a folder: with metadata.jsonl or metadata.csv; or pictures with a .txt of the same name; or one folder a
              class;
            - webdataset shards: a .tar file or a folder of them, with key.png + key.txt and/or key.json;
            - a Hugging Face dataset "owner/name".
        limit: only the first so many.
        split: of a Hugging Face dataset.

    Raises:
        ValueError: missing, unreadable or without one picture, naming file and line.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = _folder(path)
    elif path.is_file() and path.suffix == ".tar":
        found = _shard(path)
    elif path.is_file():
        found = _table(path)
    elif source.startswith(DATASET_PREFIX) or HUB_NAME.fullmatch(source):
        found = (_picture(where, row, None) for where, row in read_rows(source, limit, split))
    else:
        raise ValueError(f"{source} does not exist")
    pictures = list(islice(found, limit))
    if not pictures:
        raise ValueError(f"{source} holds no picture ({', '.join(SUFFIXES)}) and no table or shard that names some")
    return pictures


def _folder(path: Path) -> Iterator[Picture]:
    for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        if (path / name).exists():
            yield from _table(path / name)
            return
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if shards := [file for file in files if file.suffix == ".tar"]:
        for shard in shards:
            yield from _shard(shard)
        return
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            said = file.with_suffix(".txt")
            captions = (said.read_text(encoding="utf-8").strip(),) if said.exists() else ()
            label = file.parent.name if file.parent != path else None
            yield Picture(str(file), file, captions, (), label)


def _table(path: Path) -> Iterator[Picture]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".tsv"):
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")
            for row in rows:
                yield _picture(f"{path}:{rows.line_num}", row, path.parent)
    elif suffix in TABLES:
        for where, row in read_rows(str(path)):
            yield _picture(where, row, path.parent)
    else:
        raise ValueError(f"{path}: pictures are named by tables ({', '.join(TABLES)}), folders or .tar shards")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _listed(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(text for one in values if (text := " ".join(str(one).split())))


def _picture(where: str, row: Mapping[str, Any], folder: Path | None) -> Picture:
    image = _first(row, IMAGE_FIELDS)
    if isinstance(image, Mapping):  # how parquet files and Hugging Face datasets keep pictures
        image = image.get("bytes") or image.get("path")
    if hasattr(image, "save"):  # decoded already
        import io

        stream = io.BytesIO()
        image.save(stream, "PNG")
        image = stream.getvalue()
    if isinstance(image, str):
        image = (folder or Path()) / image
    if not isinstance(image, Path | bytes):
        raise ValueError(f"{where} names no picture: the column `image` holds a path or a file's bytes")
    keywords = _first(row, KEYWORD_FIELDS)
    if isinstance(keywords, str):
        keywords = keywords.replace("|", ",").split(",")
    label = _first(row, LABEL_FIELDS)
    known = {*IMAGE_FIELDS, *CAPTION_FIELDS, *KEYWORD_FIELDS}
    return Picture(
        where,
        image,
        _listed(_first(row, CAPTION_FIELDS)),
        _listed(keywords),
        None if label is None else str(label),
        {key: value for key, value in row.items() if key not in known},
    )


@lru_cache(maxsize=64)
def _members(path: Path, changed: float) -> list[tuple[str, int, int]]:
    """Name, offset and size of a shard's files; read once, so that any sample can be reached."""
    try:
        with tarfile.open(path) as shard:
            return [(one.name, one.offset_data, one.size) for one in shard if one.isfile()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no tar file: {error}") from None


def _shard(path: Path) -> Iterator[Picture]:
    """Samples of a webdataset shard: files that follow one another with one name up to the first dot."""
    parts: dict[str, tuple[int, int]] = {}
    key = None
    for name, offset, size in [*_members(path, path.stat().st_mtime), ("", 0, 0)]:
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        here = f"{folder}/{stem}".lstrip("/")
        if here != key and parts:
            yield from _sample(path, key, parts)
            parts = {}
        key = here
        if kind:
            parts[kind.lower()] = (offset, size)


def _read(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _sample(path: Path, key: str | None, parts: dict[str, tuple[int, int]]) -> Iterator[Picture]:
    image = next((parts[kind] for kind in parts if f".{kind.rpartition('.')[2]}" in SUFFIXES), None)
    if image is None:
        return
    where = f"{path}/{key}"
    row: dict[str, Any] = {}
    for kind in ("json", "txt", "cls"):
        if kind in parts:
            text = _read(path, *parts[kind]).decode("utf-8", errors="replace").strip()
            try:
                row |= json.loads(text) if kind == "json" else {"text" if kind == "txt" else "label": text}
            except (json.JSONDecodeError, TypeError) as error:
                raise ValueError(f"{where}.{kind} is no JSON object: {error}") from None
    said = {key: value for key, value in row.items() if key not in IMAGE_FIELDS}
    one = _picture(where, {**said, "image": b"-"}, None)
    yield Picture(where, TarMember(path, *image), one.captions, one.keywords, one.label, one.row)
