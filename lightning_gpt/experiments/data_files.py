"""Files that a run is made of beside a prepared corpus: rows, pictures, the model to start from; what is in them."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gpt.data.picture_files import IMAGE_FIELDS
from lightning_gpt.data.row_files import HUB_NAME
from lightning_gpt.data.sources import DATASET_PREFIX
from lightning_gpt.experiments.settings import lookup
from lightning_gpt.hub.adapters import ADAPTER_CONFIG
from lightning_gpt.hub.opening import find_checkpoint

SPLITS = ("train", "val", "test", "transfer", "zero_shot")
"""Settings of data modules that name rows."""
WRITTEN = ("reference_file",)
"""Settings of tasks that name what training itself writes."""
PICTURES = (*IMAGE_FIELDS, "images")
"""Keys of rows that name further files, seen from the folder of the rows."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja")


@dataclass(frozen=True)
class NamedFile:
    """What a setting names."""

    setting: str
    """Dotted."""
    path: str
    """As it is written there."""
    sha256: str | None = None
    """Of the content; of several files, of their names and contents. None: on the hub, nobody has looked."""
    bytes: int | None = None
    files: int | None = None
    rows: int | None = None
    """Of JSON lines; None: of another kind."""


def data_files(tree: dict[str, Any], known: dict[Path, str] | None = None) -> list[NamedFile]:
    """Files and folders that the settings of the data name.

    Args:
        tree: nested settings of fit.
        known: digests of files that were read before; added to, so that variants share them.

    Raises:
        ValueError: rows that are not there, or none named; names the setting.
    """
    known, settings = {} if known is None else known, lookup(tree, "data.init_args", {})
    named = {key: value for key, value in settings.items() if isinstance(value, str) and value}
    if "train" not in named:
        raise ValueError(
            "no corpus: give `prepare`, or data.init_args.data_dir in the configs (or, of data that are no corpus, "
            "data.init_args.train)"
        )
    found = []
    for key, value in named.items():
        setting = f"data.init_args.{key}"
        if _exists(path := Path(value).expanduser()):
            found.append(_described(setting, value, path, known))
        elif key in SPLITS:
            if not value.startswith(DATASET_PREFIX) and (not HUB_NAME.fullmatch(value) or Path(value).suffix):
                raise ValueError(f"{setting}={value} does not exist (paths start at {Path.cwd()})")
            found.append(NamedFile(setting, value))
    return found


def model_files(tree: dict[str, Any], known: dict[Path, str] | None = None) -> list[NamedFile]:
    """Models, checkpoints and tables on this machine that the settings of the task name, such as init_from.

    Args:
        tree: nested settings of fit.
        known: as of data_files.
    """
    known = {} if known is None else known
    return [
        _described(setting, value, path, known)
        for setting, value in _texts("model.init_args", lookup(tree, "model.init_args", {}))
        if setting.rpartition(".")[2] not in WRITTEN and (path := _weights(value)) is not None
    ]


def _texts(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text below a setting, with its dotted name."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(f"{where}.{key}", one)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(f"{where}.{number}", one)
    elif isinstance(value, str):
        yield where, value


def _weights(value: str) -> Path | None:
    """The file or model directory that a text names, of a run its checkpoint; None: neither."""
    path = Path(value)
    if not value or not _exists(path):
        return None
    if path.is_file() or any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        return path
    try:
        return find_checkpoint(path)
    except FileNotFoundError:
        return None


def _described(setting: str, value: str, path: Path, known: dict[Path, str]) -> NamedFile:
    model = setting.startswith("model.")
    if path.is_file():
        files = [path, *(() if model else _pictures(path))]
    else:
        found = [one for name in MODEL_FILES for one in path.glob(name)] if model else path.rglob("*")
        files = sorted(one for one in found if one.is_file() and not one.name.startswith("."))
    digests = [_sha256(one, known) for one in files]
    if len(files) == 1 and path.is_file():
        digest = digests[0]
    else:
        place = path if path.is_dir() else path.parent
        listed = (f"{os.path.relpath(file, place)} {one}\n" for file, one in zip(files, digests))
        digest = hashlib.sha256("".join(listed).encode()).hexdigest()
    rows = None
    if path.name.endswith(".jsonl"):
        with open(path, "rb") as stream:
            rows = sum(bool(line.strip()) for line in stream)
    return NamedFile(setting, value, digest, sum(one.stat().st_size for one in files), len(files), rows)


def _pictures(path: Path) -> list[Path]:
    """Files that the rows of a .jsonl name, in the order of their names; missing ones are the data module's to tell."""
    if not path.name.endswith(".jsonl"):
        return []
    found: dict[Path, None] = {}
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if not any(f'"{key}"' in line for key in PICTURES):
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue
            for key in PICTURES:
                for name in _names(row.get(key) if isinstance(row, dict) else None):
                    found[path.parent / name] = None
    return sorted(one for one in found if _exists(one) and one.is_file())


def _names(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str) and one]


def _exists(path: Path) -> bool:
    """Also of texts that are too long for a name."""
    try:
        return path.exists()
    except OSError:
        return False


def _sha256(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        with open(path, "rb") as stream:
            known[path] = hashlib.file_digest(stream, "sha256").hexdigest()
    return known[path]
