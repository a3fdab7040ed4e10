"""Text to a prepared corpus directory: read, split, learn or load the tokenizer, encode, write shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gpt.data.corpus_meta import META_FILE, SPLITS, TOKENIZER_FILE, CorpusMeta, SplitMeta, TokenizerMeta
from lightning_gpt.data.parallel_encode import choose_workers, encode_pieces
from lightning_gpt.data.progress_report import ProgressReport
from lightning_gpt.data.shard_writer import ShardWriter
from lightning_gpt.data.sources import FileSource, HubSource, Source, open_source
from lightning_gpt.data.split_documents import SPLIT_RULES, Scan, scan, split_pieces
from lightning_gpt.data.tokenizer_source import load_tokenizer, parse_recipe
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PreparedCorpus:
    """What `prepare` made or found; `meta` holds the statistics of each split."""

    directory: Path
    meta: CorpusMeta
    seconds: float
    reused: bool
    """The directory already held exactly this, and was left alone."""


def prepare(
    source: str,
    tokenizer: str = "bpe:4096",
    out: str | Path | None = None,
    file: str | Path | None = None,
    text_field: str = "text",
    val_fraction: float = 0.1,
    split: str = "tail",
    shard_tokens: int = 100_000_000,
    workers: int | None = None,
    add_eos: bool | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> PreparedCorpus:
    """Prepare a corpus for training, in constant memory.

    A directory that holds exactly this already is left alone; one that holds something else is refused. The
    directory appears whole or not at all.

    Args:
        source: "shakespeare", "tinyshakespeare", a file or folder, or a Hugging Face dataset.
        tokenizer: char, byte, bpe:N, wordpiece:N, unigram:N (made from this corpus), gpt2, cl100k_base, o200k_base,
            a tokenizer.json or its directory, or a Hugging Face name.
        out: directory to write; None: data/NAME.
        file: local copy of a named corpus.
        text_field: field of .jsonl, .parquet and datasets that holds the text.
        val_fraction: share of the text that validates, in (0, 1).
        split: "tail" (the last characters) or "document" (whole documents by hash).
        shard_tokens: tokens per shard file.
        workers: processes that encode; 0: this one; None: by cores and amount of text.
        add_eos: end every document with the tokenizer's end-of-text token; None: if it has one. True gives char and
            byte vocabularies such a token.
        seed: of the document split.
        overwrite: replace a prepared corpus that differs.
        quiet: print no progress.

    Raises:
        ValueError: one line that names what is wrong and the mend.
    """
    begin = time.perf_counter()
    _check(val_fraction, split, shard_tokens)
    recipe = parse_recipe(tokenizer)
    fixed = None if recipe is not None else _finished_tokenizer(tokenizer, add_eos)
    has_eos = recipe.scheme != "char" or bool(add_eos) if recipe else fixed.eos_id is not None
    add_eos = has_eos if add_eos is None else add_eos
    documents = open_source(source, file, text_field)
    directory = Path(out) if out is not None else Path("data") / documents.name
    old = _existing(directory, overwrite)
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "split": split,
        "val_fraction": val_fraction,
        "add_eos": add_eos,
        "shard_tokens": shard_tokens,
        "seed": seed if split == "document" else None,
    }
    with _partial_directory(directory) as partial, ProgressReport(quiet) as progress:
        progress.phase(f"reading {documents.name}")
        if isinstance(documents, HubSource):
            documents = _spool(documents, partial / "documents.jsonl")
        facts = scan(documents, seed, progress.advance)
        if old is not None:
            differences = _differences(old, directory, facts, settings, fixed)
            if not differences:
                return PreparedCorpus(directory, old, time.perf_counter() - begin, True)
            if not overwrite:
                raise ValueError(
                    f"{directory} holds another preparation ({'; '.join(differences)}): choose another --out, or "
                    "replace it with --overwrite"
                )

        def pieces():
            return split_pieces(documents, facts, split, val_fraction, seed)

        made = fixed
        if recipe is not None:
            progress.phase(f"making the tokenizer {tokenizer}", facts.characters)
            texts = (piece.text for piece in pieces() if piece.split == "train")
            made = recipe.build(facts.alphabet, _counted(texts, progress), end_of_text=add_eos)
        progress.phase("encoding", facts.characters)
        meta = _write(partial, documents.name, pieces(), facts, made, settings, workers, progress)
        (partial / "documents.jsonl").unlink(missing_ok=True)
        _replace(directory, partial)
    return PreparedCorpus(directory, meta, time.perf_counter() - begin, False)


def _check(val_fraction: float, split: str, shard_tokens: int) -> None:
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1, for example 0.1")
    if split not in SPLIT_RULES:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLIT_RULES)}")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens={shard_tokens} must be positive")


def _finished_tokenizer(spec: str, add_eos: bool | None) -> Tokenizer:
    if spec == "byte" and add_eos:
        return byte_tokenizer(end_of_text=True)
    tokenizer = load_tokenizer(spec)
    if add_eos and tokenizer.eos_id is None:
        raise ValueError(f"add_eos=True: the tokenizer {spec!r} has no end-of-text token")
    return tokenizer


def _existing(directory: Path, overwrite: bool) -> CorpusMeta | None:
    """The preparation that is there; a directory with anything else in it is never touched."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / META_FILE).is_file():
        raise ValueError(f"out={str(directory)!r} exists and is not a prepared corpus: choose another --out")
    try:
        return CorpusMeta.load(directory)
    except ValueError:
        if overwrite:
            return None
        raise


def _differences(
    old: CorpusMeta, directory: Path, facts: Scan, settings: dict[str, Any], fixed: Tokenizer | None
) -> list[str]:
    """How the existing preparation differs from the one asked for, for people to read."""
    differences = []
    if old.text_sha256 != facts.text_sha256:
        differences.append("its text is another")
    before = dict(old.recipe)
    if fixed is not None and old.tokenizer.fingerprint == fixed.fingerprint:
        before["tokenizer"] = settings["tokenizer"]  # the same tokenizer under another name
    elif fixed is not None and before.get("tokenizer") == settings["tokenizer"]:
        differences.append(f"the tokenizer {settings['tokenizer']!r} has changed since")
    for name, value in settings.items():
        if before.get(name) != value:
            differences.append(f"{name} was {before.get(name)!r}, not {value!r}")
    try:
        saved = load_tokenizer(directory)
    except ValueError:
        return [*differences, f"its {TOKENIZER_FILE} is missing or broken"]
    if saved.fingerprint != old.tokenizer.fingerprint:
        differences.append(f"its {TOKENIZER_FILE} is not the one that made the ids")
    return differences


def _counted(texts: Iterator[str], progress: ProgressReport) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text))


def _spool(source: HubSource, path: Path) -> Source:
    """Keep a streamed dataset on disk while it is prepared: it is read up to three times."""
    with open(path, "w", encoding="utf-8") as file:
        document: list[str] = []
        for text, last in source.pieces():
            document.append(text)
            if last:
                file.write(json.dumps({"text": "".join(document)}) + "\n")
                document.clear()
    return FileSource(source.name, (path,))


def _write(
    directory: Path,
    name: str,
    pieces: Iterator,
    facts: Scan,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    workers: int | None,
    progress: ProgressReport,
) -> CorpusMeta:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    writers = {split: ShardWriter(directory, split, dtype, settings["shard_tokens"]) for split in SPLITS}
    totals = {split: {"documents": 0, "bytes": 0, "characters": 0, "unknown_tokens": 0} for split in SPLITS}
    eos = np.array([tokenizer.eos_id], dtype=np.uint32) if settings["add_eos"] else np.empty(0, np.uint32)
    for piece, ids in encode_pieces(pieces, tokenizer, choose_workers(workers, facts.bytes)):
        writer, total = writers[piece.split], totals[piece.split]
        total["documents"] += piece.ends
        total["bytes"] += len(piece.text.encode("utf-8"))
        total["characters"] += len(piece.text)
        if tokenizer.unk_id is not None:
            total["unknown_tokens"] += int(np.count_nonzero(ids == tokenizer.unk_id))
        writer.append(np.concatenate([ids, eos]) if piece.complete else ids, piece.ends)
        progress.advance(len(piece.text))
    splits = {}
    for split, writer in writers.items():
        shards = writer.close()
        tokens = sum(shard.tokens for shard in shards)
        if not tokens:
            raise ValueError(
                f"split={settings['split']!r}, val_fraction={settings['val_fraction']}: the {split} split is empty: "
                "choose another val_fraction, seed or split"
            )
        splits[split] = SplitMeta(shards=shards, tokens=tokens, **totals[split])
    (directory / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    identity = {
        "text": facts.text_sha256,
        "tokenizer": tokenizer.fingerprint,
        **{key: value for key, value in settings.items() if key not in ("tokenizer", "shard_tokens")},
    }
    meta = CorpusMeta(
        name=name,
        tokenizer=TokenizerMeta(tokenizer.scheme, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id),
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        text_sha256=facts.text_sha256,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        splits=splits,
        recipe=settings,
    )
    meta.save(directory)
    return meta


@contextmanager
def _partial_directory(directory: Path) -> Iterator[Path]:
    """A directory beside the final one, gone afterwards unless it was renamed; clears what killed runs left."""
    prefix = f".{directory.name}.partial-"
    directory.parent.mkdir(parents=True, exist_ok=True)
    for left in directory.parent.glob(prefix + "*"):
        if not _is_running(left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)
    partial = directory.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _replace(directory: Path, partial: Path) -> None:
    """Put the new directory in the place of the old, which is put aside first: a directory cannot be written over."""
    old = partial.with_name(partial.name + "-old")
    if directory.exists():
        os.replace(directory, old)
    os.replace(partial, directory)
    shutil.rmtree(old, ignore_errors=True)
