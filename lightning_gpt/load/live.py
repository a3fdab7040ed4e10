"""What is seen while a load runs: a table that renews itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import Any, TextIO

from lightning_gpt.load.generator import Second
from lightning_gpt.load.tables import number

ROWS = 10
LINE_EVERY = 5
"""Seconds between lines where there is no terminal."""
HEADING = ("time", "sent/s", "done/s", "errors/s", "P50 ms", "P99 ms", "in flight", "tokens/s")


class LiveView:
    """Shows each second of a load; a context manager.

    Args:
        seconds: that the load will take.
        file: where to; sys.stderr by default.
    """

    def __init__(self, seconds: float, file: TextIO | None = None) -> None:
        self.file = sys.stderr if file is None else file
        self.seconds = seconds
        self._rows: deque[Second] = deque(maxlen=ROWS)
        self._live: Any = None
        self._count = 0

    def __enter__(self) -> LiveView:
        if self.file.isatty():
            from rich.console import Console
            from rich.live import Live

            # Drawn by the seconds alone: a thread of its own would take the processor from the generator.
            self._live = Live(console=Console(file=self.file), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, second: Second) -> None:
        """Shows a second."""
        self._count += 1
        self._rows.append(second)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif self._count % LINE_EVERY == 0:
            print(
                "  ".join(f"{name} {value}" for name, value in zip(HEADING, cells(second))), file=self.file, flush=True
            )

    def _table(self) -> Any:
        from rich.table import Table

        last = self._rows[-1]
        table = Table(
            title=f"{last.second:,.0f} of {self.seconds:,.0f} s, {last.total_sent:,} sent, "
            f"{last.total_errors:,} errors; Ctrl-C ends it"
        )
        for name in HEADING:
            table.add_column(name, justify="right")
        for second in self._rows:
            table.add_row(*cells(second), style="red" if second.errors else None)
        return table


def cells(second: Second) -> list[str]:
    """In the order of HEADING."""
    return [
        f"{second.second:,.0f} s",
        f"{second.sent:,}",
        f"{second.done:,}",
        f"{second.errors:,}",
        number(second.p50_ms),
        number(second.p99_ms),
        f"{second.in_flight:,}",
        f"{second.tokens:,}",
    ]
