"""Features of many pictures kept on disk: a search embeds only what is new or changed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_gpt.data.picture_files import Picture, TarMember
from lightning_gpt.data.pictures import PictureError
from lightning_gpt.data.progress_report import ProgressReport

Embed = Callable[[list[Any]], Tensor]
"""RGB pictures -> unit vectors (N, D)."""
BATCH = 64


@dataclass
class PictureIndex:
    """Pictures with their features."""

    pictures: list[Picture]
    features_ND: Tensor
    """Unit vectors, in the pictures' order."""
    embedded: int
    """How many were new."""
    left_out: list[str]
    """Why pictures could not be used."""

    def nearest(self, query_D: Tensor, top: int) -> list[tuple[Picture, float]]:
        """The pictures most like a query, with their cosines."""
        similar = self.features_ND @ query_D
        found = similar.topk(min(top, len(self.pictures)))
        return [(self.pictures[place], value) for value, place in zip(found.values.tolist(), found.indices.tolist())]


def key_of(one: Picture) -> str:
    """Changes when the picture does: its place, size and time of change; its bytes where it is no file."""
    source = one.source
    if isinstance(source, bytes):
        return f"{one.where}:{hashlib.sha256(source).hexdigest()}"
    path = source.shard if isinstance(source, TarMember) else source
    about = path.stat()
    part = f":{source.offset}" if isinstance(source, TarMember) else ""
    return f"{path.resolve()}{part}:{about.st_size}:{about.st_mtime_ns}"


def build_index(pictures: Sequence[Picture], embed: Embed, path: Path, model: str) -> PictureIndex:
    """The index of some pictures, from disk where it is there, brought up to date and written back.

    Args:
        pictures: what to find.
        embed: the model.
        path: the index's file.
        model: changes when the features would; an index of another model is made anew.

    Raises:
        ValueError: not one picture can be used.
    """
    known = _read(path, model)
    kept, rows, fresh, left_out = [], [], [], []
    for one in pictures:
        try:
            key = key_of(one)
        except OSError as error:
            left_out.append(f"{one.source} cannot be read: {error.strerror}")
            continue
        kept.append((one, key))
        if key not in known:
            fresh.append((one, key))
    for batch in _batches(fresh):
        opened = []
        for one, key in batch:
            try:
                opened.append((key, one.open()))
            except PictureError as error:
                left_out.append(str(error))
        if opened:
            for (key, _), row in zip(opened, embed([picture for _, picture in opened])):
                known[key] = row
    usable = [(one, key) for one, key in kept if key in known]
    if not usable:
        raise ValueError(f"not one picture can be searched, the first: {left_out[0] if left_out else 'there is none'}")
    rows = torch.stack([known[key] for _, key in usable])
    if fresh:
        _write(path, model, [key for _, key in usable], rows)
    return PictureIndex([one for one, _ in usable], rows, len(fresh), left_out)


def _batches(fresh: list[tuple[Picture, str]]) -> Iterator[list[tuple[Picture, str]]]:
    if len(fresh) <= 4 * BATCH:
        yield from (fresh[first : first + BATCH] for first in range(0, len(fresh), BATCH))
        return
    with ProgressReport() as progress:
        progress.phase(f"embedding {len(fresh):,} pictures", len(fresh))
        for first in range(0, len(fresh), BATCH):
            yield fresh[first : first + BATCH]
            progress.advance(min(BATCH, len(fresh) - first))


def _read(path: Path, model: str) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as stored:
            about = stored.metadata()
            if about.get("model") != model:
                return {}
            return dict(zip(json.loads(about["keys"]), stored.get_tensor("features"), strict=True))
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}  # damaged: it is only a cache


def _write(path: Path, model: str, keys: list[str], rows: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file({"features": rows.contiguous()}, temporary, {"model": model, "keys": json.dumps(keys)})
        os.replace(temporary, path)
    except OSError as error:
        print(f"the index could not be kept in {path} ({error.strerror}): --index names another place", file=sys.stderr)
