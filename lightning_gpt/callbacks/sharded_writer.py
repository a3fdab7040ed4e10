"""Writing a sharded checkpoint: every rank its part, together complete or not at all (hub/sharded_checkpoint.py)."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from lightning_gpt.callbacks.checkpoint_io import SaveError, clear_leftovers, commit, discard, next_version
from lightning_gpt.hub.integrity import fingerprint, verify, write_manifest
from lightning_gpt.hub.sharded_checkpoint import META_FILE, METADATA_FILE, split

T = TypeVar("T")
FAILURES = (OSError, RuntimeError, ValueError, CheckpointException)
"""What storage that fails makes torch raise; CheckpointException is no Exception."""


def write_sharded(checkpoint: dict[str, Any], target: Path, group: Any, previous: str | None = None) -> None:
    """Every rank of the group calls with its part of the DTensors; what is no tensor is rank 0's.

    Args:
        checkpoint: Lightning's dictionary.
        target: the name; it becomes a link to a new directory <target>.<n> beside it.
        group: CPU process group of the writers; None = one process without groups.
        previous: name under which the checkpoint that is replaced is kept.

    Raises:
        SaveError: on all ranks alike.
    """
    rank = 0 if group is None else dist.get_rank(group)
    directory = Path(_together(lambda: str(_new_directory(target)) if rank == 0 else None, group, target)[0])
    try:
        tensors, rest = split(checkpoint)
        _together(lambda: _save(tensors, directory, group), group, target)
        written = _together(lambda: _finish_part(directory, rank, rest), group, target)
        files = {name: about for part in written for name, about in part.items()}
        _together(lambda: _complete(directory, files, target, previous) if rank == 0 else None, group, target)
    except SaveError:
        if rank == 0:
            discard(directory)
        raise


def _new_directory(target: Path) -> Path:
    clear_leftovers(target)
    directory = next_version(target)
    directory.mkdir()
    return directory


def _save(tensors: dict[str, torch.Tensor], directory: Path, group: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(directory), process_group=group, no_dist=group is None)


def _finish_part(directory: Path, rank: int, rest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Sizes and checksums of this rank's files, read back."""
    own = [path for path in directory.iterdir() if path.name.startswith(f"__{rank}_")]
    if rank == 0:
        with open(directory / META_FILE, "wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        verify(directory / META_FILE)
        own += [directory / META_FILE, directory / METADATA_FILE]
    return {path.name: fingerprint(path) for path in own}


def _complete(directory: Path, files: dict[str, tuple[int, int]], target: Path, previous: str | None) -> None:
    write_manifest(directory, files)
    link = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    link.symlink_to(directory.name)
    commit(link, target, previous)


def _together(action: Callable[[], T], group: Any, target: Path) -> list[T]:
    """Does something on every rank; the results by rank.

    Raises:
        SaveError: it failed somewhere.
    """
    result: tuple[T | None, SaveError | None]
    try:
        result = action(), None
    except FAILURES as error:
        if isinstance(error, CheckpointException) and error.failures:
            error = next(iter(error.failures.values()))[0]
        result = None, SaveError.of(error, target)
    if group is None:
        results = [result]
    else:
        results = [result] * dist.get_world_size(group)
        dist.all_gather_object(results, result, group=group)
    for _, failed in results:
        if failed is not None:
            raise failed
    return [value for value, _ in results]
