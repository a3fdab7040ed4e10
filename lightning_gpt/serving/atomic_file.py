"""Files that a reader sees whole or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o600, sync: bool = False) -> None:
    """Replaces a file in one step. A file that exists keeps its mode and, where that is allowed, its owner.

    Args:
        path: a link is followed, so that what it points to is replaced and not the link.
        data: the whole content.
        mode: of a new file.
        sync: wait until the disk has it. Without, a kill of the process loses nothing, a power cut may.

    Raises:
        OSError: the disk is full, the directory cannot be written; the old file is then as it was.
    """
    path = Path(os.path.realpath(path))
    owner = None
    with contextlib.suppress(FileNotFoundError):
        stat = path.stat()
        mode, owner = stat.st_mode & 0o777, (stat.st_uid, stat.st_gid)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            if owner is not None:
                with contextlib.suppress(OSError):
                    os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
