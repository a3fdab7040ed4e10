"""What the terminal shows while an experiment runs: a live table for people, a line a cell for files and pipes."""

import sys
import time

from lightning_gpt.experiments.cell_run import CellState, metrics_of, read_state
from lightning_gpt.experiments.plan import Cell

REFRESH_SECONDS = 1.0


class ExperimentProgress:
    """Counts cells, values and the time that is left.

    Time is foretold from the seconds that cells were measured to take, else from the FLOPs that are done, as cells may
    differ a hundredfold in size; from their number where the FLOPs are not known.

    Args:
        cells: all of the experiment.
        finished: those that an earlier call had finished.
        metric: shown for each cell.
    """

    def __init__(self, cells: list[Cell], finished: list[Cell], metric: str) -> None:
        self.cells, self.metric = cells, metric
        self.finished = set(map(id, finished))
        self.outcomes = {id(cell): self._outcome(cell, read_state(cell)) for cell in finished}
        work = [cell.seconds for cell in cells]
        if not all(work):
            work = [cell.training_flops for cell in cells]
        self.work = dict(zip(map(id, cells), work if all(work) else [1.0] * len(cells)))
        self.total = sum(self.work[id(cell)] for cell in cells if id(cell) not in self.finished)
        self.done, self.begin = 0.0, time.monotonic()
        self.live = None

    def __enter__(self) -> "ExperimentProgress":
        if self.finished:
            print(f"{len(self.finished)} of {len(self.cells)} cells are finished already", file=sys.stderr)
        if sys.stderr.isatty() and len(self.finished) < len(self.cells):
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self.live = Live(get_renderable=self.table, console=console, refresh_per_second=1 / REFRESH_SECONDS)
            self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def ended(self, cell: Cell, state: CellState) -> None:
        """Notes a cell's end and shows it."""
        self.finished.add(id(cell))
        self.done += self.work[id(cell)]
        self.outcomes[id(cell)] = self._outcome(cell, state)
        if self.live is None:
            left = f", {self.left()}" if len(self.finished) < len(self.cells) else ""
            print(
                f"cell {len(self.finished)}/{len(self.cells)}  {cell.variant} seed {cell.seed}: "
                f"{self.outcomes[id(cell)]} in {state.seconds:.0f} s{left}",
                file=sys.stderr,
                flush=True,
            )

    def left(self) -> str:
        """ "about 12:30 left"."""
        running = sum(self.work[id(cell)] * self._share(cell) for cell in self._running())
        done = self.done + running
        if not done:
            return "time left unknown"
        seconds = (time.monotonic() - self.begin) * (self.total - done) / done
        return f"about {duration(seconds)} left"

    def table(self):
        """A row a variant, a column a seed; rich's."""
        from rich.table import Table

        running = self._running()
        waiting = len(self.cells) - len(self.finished) - len(running)
        spent = duration(time.monotonic() - self.begin)
        title = f"{len(self.finished)} done, {len(running)} running, {waiting} waiting; {spent} spent, {self.left()}"
        table = Table(title=title, title_justify="left")
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        table.add_column(self.metric)
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        by_place = {(cell.variant, cell.seed): cell for cell in self.cells}
        for variant in dict.fromkeys(cell.variant for cell in self.cells):
            row = [by_place.get((variant, seed)) for seed in seeds]
            table.add_row(variant, *("" if cell is None else self._place(cell) for cell in row))
        return table

    def _place(self, cell: Cell) -> str:
        if id(cell) in self.finished:
            return self.outcomes[id(cell)].removeprefix(f"{self.metric} ")
        state = read_state(cell)
        return f"{self._share(cell):.0%} ..." if state and state.status == "running" else "waiting"

    def _running(self) -> list[Cell]:
        states = ((cell, read_state(cell)) for cell in self.cells if id(cell) not in self.finished)
        return [cell for cell, state in states if state and state.status == "running"]

    def _share(self, cell: Cell) -> float:
        """Of its steps, that have been logged."""
        rows = metrics_of(cell)
        return min(1.0, rows[-1]["step"] / cell.max_steps) if rows else 0.0

    def _outcome(self, cell: Cell, state: CellState | None) -> str:
        if state and state.status == "diverged":
            return "diverged"
        values = [row[self.metric] for row in metrics_of(cell) if self.metric in row]
        return f"{self.metric} {values[-1]:.4f}" if values else "done"


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
