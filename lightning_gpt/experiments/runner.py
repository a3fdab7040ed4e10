"""Runs the cells of an experiment that are not finished yet, on an engine."""

from lightning_gpt.experiments.cell_run import CellState, metrics_of, read_state
from lightning_gpt.experiments.engines import Engine, LocalEngine
from lightning_gpt.experiments.live import ExperimentProgress
from lightning_gpt.experiments.plan import Cell
from lightning_gpt.experiments.spec_checks import nearest


def run_cells(cells: list[Cell], metric: str, engine: Engine | None = None) -> None:
    """Runs what is not finished yet and shows the progress on stderr.

    A cell that fails stops the others, which save and are continued by the next call.

    Args:
        cells: of plan_cells.
        metric: the one that decides; shown for each.
        engine: where they run; None: here, one after the other.

    Raises:
        RuntimeError, ValueError: a cell failed otherwise than by diverging, or ended without having logged the metric;
            the finished ones are kept.
    """
    finished = [cell for cell in cells if (state := read_state(cell)) and state.finished]
    for cell in finished:
        if error := _not_logged(cell, read_state(cell), metric):
            raise error
    waiting = [cell for cell in cells if cell not in finished]
    with ExperimentProgress(cells, finished, metric) as progress:
        outcomes = (engine or LocalEngine()).run(waiting)
        for cell, outcome in outcomes:
            error = outcome if isinstance(outcome, Exception) else _not_logged(cell, outcome, metric)
            if error:
                outcomes.close()
                raise error
            progress.ended(cell, outcome)


def _not_logged(cell: Cell, state: CellState, metric: str) -> ValueError | None:
    """Told after the first run, not after the last: names of metrics of other tasks cannot be checked before."""
    logged = {name for row in metrics_of(cell) for name in row}
    if state.status != "done" or metric in logged:
        return None
    close = [name for name in logged if name.partition("/")[0] == metric.partition("/")[0]]
    return ValueError(
        f"{cell.variant} seed {cell.seed} has ended and logged no {metric}{nearest(metric, logged)}: it logged "
        f"{', '.join(sorted(close or logged - {'step'})) or 'nothing'}"
    )
