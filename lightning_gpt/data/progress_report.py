"""Progress of a long job over text: a rich bar on a terminal, a few plain lines otherwise."""

from __future__ import annotations

import sys
from types import TracebackType


class ProgressReport:
    """Context manager; `phase` begins a part of the job and `advance` counts its characters.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False):
        self._bar = None
        self._quiet = quiet
        self._task = None
        self._name, self._total, self._done, self._shown = "", 0, 0, 0
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a part of `total` characters; None when that is not known."""
        self._name, self._total, self._done, self._shown = name, total or 0, 0, 0
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total)
        elif not self._quiet:
            print(f"{name} ...", file=sys.stderr, flush=True)

    def advance(self, characters: int) -> None:
        """Count work done; a plain line comes every tenth of the phase, and only for 100 MB and more."""
        self._done += characters
        if self._bar is not None:
            self._bar.update(self._task, advance=characters)
        elif not self._quiet and self._total >= 100_000_000 and (tenth := self._done * 10 // self._total) > self._shown:
            self._shown = tenth
            print(f"{self._name} {tenth * 10}%", file=sys.stderr, flush=True)
