"""How checkpoints come to storage: whole or sharded, at once or in the background, always all or nothing."""

import contextlib
import errno
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_gpt.callbacks.checkpoint_snapshot import Snapshot
from lightning_gpt.hub.integrity import (
    MANIFEST,
    DamagedError,
    restore_pointer,
    sync_directory,
    verify,
    versions,
    way_out,
)


class SaveError(OSError, RuntimeError):
    """A checkpoint could not be written; the one before it is as it was."""

    @classmethod
    def of(cls, error: BaseException, target: Path) -> "SaveError":
        """What a writer raised, with what there is instead. torch turns a failed write into a RuntimeError about the
        position in the file; the reason is then in its context."""
        if isinstance(error, cls):
            return error
        context: BaseException | None = error
        while context is not None and not (isinstance(context, OSError) and context.errno):
            context = context.__cause__ or context.__context__
        error = context or error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        try:
            old = f"the previous {target} is untouched" if target.exists() else "no earlier checkpoint exists there"
        except OSError:
            old = f"{target} cannot be reached"
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        return cls(number, f"could not save a checkpoint ({reason[:300]}); {old}", str(target))


@dataclass(frozen=True)
class SaveOptions:
    """Lightning's storage_options, as this plugin takes them."""

    asynchronous: bool = False
    """Copy the state and write it in the background; the next save waits for this one."""
    sharded: bool = False
    """Every rank calls and writes its part of the DTensors; else rank 0 alone calls, with whole tensors."""
    owned: bool = False
    """Nobody else changes the tensors: none is copied before it is written in the background."""
    previous: str | None = None
    """Name beside the target under which the checkpoint that it replaces is kept."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, reads it back, then changes the name in one step: a reader, and a run
    that is continued after a kill at any moment, finds the old checkpoint or the new one, never half of one. Only then
    is the old one removed.

    A whole file is renamed over the old one. A directory cannot be; there the name is a link to last.ckpt.<n>/ and the
    link is what is renamed. A write that fails leaves the old one as it was and raises SaveError, on all ranks that
    take part.
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._group: Any = None
        self._grouped_for: Any = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Saves `checkpoint` at `path`.

        Args:
            checkpoint: Lightning's dictionary.
            path: the target; its directory is made.
            storage_options: fields of SaveOptions.

        Raises:
            SaveError: this save failed, or the one before it, in the background.
        """
        self.wait()
        options = SaveOptions(**(storage_options or {}))
        target = Path(path)
        group = self._process_group() if options.sharded else None
        if not options.asynchronous:
            self._write(checkpoint, target, options, group)
            return
        if not options.owned:
            checkpoint = self._snapshot.take(checkpoint)
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending = self._writer.submit(self._write, checkpoint, target, options, group)

    def wait(self) -> None:
        """Returns when nothing is being written in the background any more.

        Raises:
            SaveError: what was being written has failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        """Ends the writer; Python waits for it too."""
        self.wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
        lazily: bool = False,
    ) -> dict[str, Any]:
        """Reads a whole file or a sharded directory. Every rank calls: they share the work of verifying.

        Args:
            path: which.
            map_location: as torch.load has it; sharded ones are read into CPU memory.
            weights_only: as torch.load has it.
            lazily: leave tensors on disk until they are used.

        Raises:
            DamagedError: it is not what was written; the message names a checkpoint that is.
        """
        path = Path(path)
        _verify_together(path)
        if path.is_dir():
            from lightning_gpt.hub.sharded_checkpoint import META_FILE, materialised, read_sharded

            rest = super().load_checkpoint(path / META_FILE, map_location, weights_only)
            content = read_sharded(path, rest)
            return content if lazily else materialised(content)
        if lazily:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a file, or a link with the directory that it points to."""
        path = Path(path)
        if path.is_symlink():
            directory = path.parent / path.readlink()
            path.unlink()
            discard(directory)
        elif path.exists():
            super().remove_checkpoint(path)

    def _process_group(self) -> Any:
        """Of the writers of a sharded checkpoint: on the CPU and apart from training's, which goes on meanwhile."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        if self._grouped_for is not dist.group.WORLD:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))
            self._grouped_for = dist.group.WORLD
        return self._group

    def _write(self, checkpoint: dict[str, Any], target: Path, options: SaveOptions, group: Any) -> None:
        if options.sharded:
            from lightning_gpt.callbacks.sharded_writer import write_sharded

            write_sharded(checkpoint, target, group, options.previous)
        else:
            write_whole(checkpoint, target, options.previous)


def write_whole(checkpoint: dict[str, Any], target: Path, previous: str | None = None) -> None:
    """One file, all or nothing.

    Raises:
        SaveError: naming the target.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        clear_leftovers(target)
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        verify(temporary)
        commit(temporary, target, previous)
    except (OSError, RuntimeError, DamagedError) as error:
        _unlink_if_possible(temporary)
        raise SaveError.of(error, target) from error


def clear_leftovers(target: Path) -> None:
    """Readies a target's directory: makes it, and removes what a kill has left half-written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    restore_pointer(target)
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        left.unlink(missing_ok=True)
    _prune(target)


def commit(temporary: Path, target: Path, previous: str | None) -> None:
    """Gives a complete file or link the target's name in one step, then removes what nothing points to any more."""
    if target.is_dir() and not target.is_symlink():
        _make_link(target)
    if previous is not None and target.exists():
        _keep(target, target.with_name(previous))
    os.replace(temporary, target)
    sync_directory(target.parent)
    _prune(target)


def _make_link(target: Path) -> None:
    """A directory that stands under the name itself (a copy that followed links) makes room for a link to it. A kill
    between the two steps leaves the name missing; restore_pointer then finds the newest complete directory."""
    aside = next_version(target)
    os.rename(target, aside)
    target.symlink_to(aside.name)


def next_version(target: Path) -> Path:
    """The directory <target>.<n> after the highest."""
    number = max((int(path.suffix[1:]) for path in versions(target)), default=0) + 1
    return target.with_name(f"{target.name}.{number}")


def _keep(target: Path, previous: Path) -> None:
    """The checkpoint that is about to be replaced gets a second name."""
    second = previous.with_name(f".{target.name}.previous.tmp")
    if target.is_symlink():
        second.symlink_to(target.readlink())
    else:
        try:
            os.link(target, second)
        except OSError:  # a file system without second names
            shutil.copyfile(target, second)
    os.replace(second, previous)


def _prune(target: Path) -> None:
    """Removes directories <target>.<n> to which no link points."""
    linked = {link.readlink().name for link in target.parent.iterdir() if link.is_symlink()}
    for directory in versions(target):
        if directory.name not in linked:
            discard(directory)


def discard(directory: Path) -> None:
    """Removes a sharded directory, its manifest first: a half-removed one must not count as complete."""
    _unlink_if_possible(directory / MANIFEST)
    shutil.rmtree(directory, ignore_errors=True)


def _unlink_if_possible(path: Path) -> None:
    with contextlib.suppress(OSError):  # the storage is gone; the next save removes it
        path.unlink(missing_ok=True)


def _verify_together(path: Path) -> None:
    """Each rank reads its share of the files; all learn what is wrong.

    Raises:
        DamagedError: the same on every rank.
    """
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    found: list[str | None] = [None]
    try:
        verify(path, rank, ranks)
    except DamagedError as error:
        found = [f"{error}{way_out(path)}"]
    if together:
        mine, found = found[0], [None] * ranks
        dist.all_gather_object(found, mine)
    if wrong := next(filter(None, found), None):
        raise DamagedError(wrong)
