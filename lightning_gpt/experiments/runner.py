"""Runs the cells of an experiment that are not finished yet, on an engine."""

from lightning_gpt.experiments.cell_run import read_state
from lightning_gpt.experiments.engines import Engine, LocalEngine
from lightning_gpt.experiments.live import ExperimentProgress
from lightning_gpt.experiments.plan import Cell


def run_cells(cells: list[Cell], metric: str, engine: Engine | None = None) -> None:
    """Runs what is not finished yet and shows the progress on stderr.

    A cell that fails stops the others, which save and are continued by the next call.

    Args:
        cells: of plan_cells.
        metric: shown for each.
        engine: where they run; None: here, one after the other.

    Raises:
        RuntimeError, ValueError: a cell failed otherwise than by diverging; the finished ones are kept.
    """
    finished = [cell for cell in cells if (state := read_state(cell)) and state.finished]
    waiting = [cell for cell in cells if cell not in finished]
    with ExperimentProgress(cells, finished, metric) as progress:
        outcomes = (engine or LocalEngine()).run(waiting)
        for cell, outcome in outcomes:
            if isinstance(outcome, Exception):
                outcomes.close()
                raise outcome
            progress.ended(cell, outcome)
