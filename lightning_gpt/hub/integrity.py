"""Whether a checkpoint is what was written: checksums of whole files (in the zip itself) and of sharded directories
(in their manifest)."""

import json
import os
import zipfile
import zlib
from pathlib import Path

MANIFEST = "manifest.json"
"""In a sharded directory, written when all else is: {"format": 1, "files": {name: [bytes, CRC-32]}}."""
NAMES = ("last.ckpt", "best.ckpt", "previous.ckpt")
"""What a run keeps, in the order in which they are proposed instead of one another."""
_CHUNK = 1 << 22


class DamagedError(ValueError):
    """A checkpoint is not what was written; the message names the file, and another checkpoint where one is whole."""


def verify(path: str | Path, part: int = 0, parts: int = 1) -> None:
    """Reads a checkpoint through and compares checksums.

    Args:
        path: whole file of torch.save, or sharded directory.
        part: share of this process, of a directory's files; a whole file is the first share's.
        parts: how many processes share the work.

    Raises:
        DamagedError: truncated, changed or incomplete.
    """
    path = Path(path)
    try:
        if path.is_dir():
            manifest = read_manifest(path)
            for name in sorted(manifest)[part::parts]:
                _verify_shard(path / name, *manifest[name])
        elif part == 0:
            with zipfile.ZipFile(path) as archive:
                if (bad := archive.testzip()) is not None:
                    raise DamagedError(f"{path} is damaged (the checksum of {bad} is wrong)")
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zlib.error) as error:
        raise DamagedError(f"{path} is truncated or damaged ({error})") from None


def _verify_shard(file: Path, size: int, checksum: int) -> None:
    if not file.exists():
        raise DamagedError(f"{file} is missing: the checkpoint is incomplete")
    if file.stat().st_size != size:
        raise DamagedError(f"{file} is truncated: {file.stat().st_size:,} bytes of {size:,}")
    if fingerprint(file)[1] != checksum:
        raise DamagedError(f"{file} is damaged: its checksum is not the manifest's")


def fingerprint(file: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file, read back from storage."""
    size = checksum = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return size, checksum


def write_manifest(directory: Path, files: dict[str, tuple[int, int]]) -> None:
    """Completes a sharded directory: without its manifest it counts for nothing.

    Raises:
        OSError: it cannot be written, or a file is not there as it was written (not on storage that all ranks share).
    """
    for name, (size, _) in files.items():
        found = (directory / name).stat().st_size if (directory / name).exists() else None
        if found != size:
            raise OSError(f"{directory / name} is not there as a rank wrote it: all ranks need the same storage")
    with open(directory / MANIFEST, "w", encoding="utf-8") as stream:
        json.dump({"format": 1, "files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(directory)


def read_manifest(directory: Path) -> dict[str, tuple[int, int]]:
    """File names with size and checksum.

    Raises:
        DamagedError: there is none that can be read: the directory was never completed.
    """
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise DamagedError(f"{directory} has no {MANIFEST}: its writing was never completed") from None
    except (ValueError, KeyError, UnicodeDecodeError):
        raise DamagedError(f"{directory / MANIFEST} is damaged") from None


def sync_directory(directory: Path) -> None:
    """Makes names in a directory durable, where the file system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems have no such thing
    finally:
        os.close(descriptor)


def restore_pointer(path: Path) -> None:
    """Points a sharded checkpoint's name at its newest complete directory, where copying the run lost the link."""
    if path.exists():
        return
    for directory in reversed(versions(path)):
        if (directory / MANIFEST).exists():
            if path.is_symlink():
                path.unlink()
            path.symlink_to(directory.name)
            return


def versions(path: Path) -> list[Path]:
    """Directories <name>.<n> that a sharded checkpoint's name can point to, by n."""
    found = [p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.suffix[1:]))


def way_out(path: str | Path) -> str:
    """The end of a sentence that names another checkpoint of the run that is whole; empty if there is none."""
    path = Path(path)
    for name in NAMES:
        other = path.with_name(name)
        if name == path.name or not other.exists():
            continue
        try:
            verify(other)
        except DamagedError:
            continue
        return f"; {other} is whole: name it instead"
    return ""
