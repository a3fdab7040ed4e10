"""Progress of a quantization: a bar on a terminal, a line every few seconds otherwise."""

from __future__ import annotations

import sys
import time

from lightning_gpt.data.progress_report import ProgressReport

SECONDS = 5.0
"""Between plain lines."""


class BlockProgress:
    """Context manager; called with a line when a block is done.

    Args:
        blocks: how many there are.
    """

    def __init__(self, blocks: int) -> None:
        self._bar = ProgressReport(quiet=not sys.stderr.isatty())
        self._blocks, self._told = blocks, time.monotonic()

    def __enter__(self) -> BlockProgress:
        self._bar.__enter__()
        self._bar.phase("blocks", self._blocks)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def __call__(self, line: str) -> None:
        """Counts a block."""
        self._bar.advance(1)
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._told >= SECONDS:
            self._told = now
            print(line, file=sys.stderr, flush=True)
