"""Locks between processes, which end with whoever holds them, however that ends."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[int | None]:
    """Only one thread of one process at a time is between here and there.

    Args:
        path: of the lock file.
        waiting: called when somebody else holds the lock, before waiting for it.

    Yields:
        the lock's descriptor: a child that inherits it holds the lock as long as it lives. None where the system has no
        such locks (there, one process at a time).
    """
    with open(path, "a") as file:
        take = _flock()
        if take is not None and not take(file, False):
            waiting()
            take(file, True)
        yield None if take is None else file.fileno()


def try_lock(path: Path) -> IO[str] | None:
    """An open file that holds a lock until it is closed and no child has it; None: somebody else holds it."""
    file = open(path, "a")  # noqa: SIM115
    take = _flock()
    if take is None or take(file, False):
        return file
    file.close()
    return None


def _flock() -> Callable[[IO[str], bool], bool] | None:
    try:
        import fcntl
    except ImportError:
        return None

    def take(file: IO[str], wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    return take
