"""One trial of a search: a real training run a seed, watched while it runs, stopped gently when the pruner says so."""

import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.cell_run import (
    LOG_FILE,
    CellState,
    conclude,
    metrics_of,
    prepare_run,
    read_state,
    start_process,
)
from lightning_gpt.experiments.plan import Cell

POLL_SECONDS = 0.2
STOPPED_AT = re.compile(r"stopped by SIG\w+: .*at step (\d+)|nothing was saved")
PRUNED = "pruned"
INTERRUPTED = (130, 143, -2, -15)
"""Exit statuses of a run that a signal ended."""


@dataclass
class TrialOutcome:
    """How a trial ended."""

    state: str
    """complete, pruned, diverged (the loss was no longer finite), or failed (training refused the settings or
    crashed)."""
    values: list[float] = field(default_factory=list)
    """Of each seed, at the end of training."""
    steps: int = 0
    """Optimizer steps that were trained, all seeds together."""
    seconds: float = 0.0
    """Wall time of all seeds, starts of processes included; of the last attempt where there were several."""
    flops: float | None = None
    """Training FLOPs of these steps."""
    full_steps: int = 0
    """Of all seeds, had they come to their end."""
    full_flops: float | None = None
    message: str = ""

    @property
    def value(self) -> float | None:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values) if self.values else None


def run_trial(
    trial: Any,
    cells: list[Cell],
    metric: str,
    lock: int | None = None,
    environment: dict[str, str] | None = None,
    processes: set[subprocess.Popen] | None = None,
) -> TrialOutcome:
    """Trains all seeds of a trial, or what is left of them.

    The first seed's validations are reported to Optuna; it alone can be pruned.

    Args:
        trial: Optuna's, running.
        cells: one a seed.
        metric: of validation, smaller is better.
        lock: descriptor that the runs shall hold as long as they live.
        environment: variables laid over this process'.
        processes: holds the process while it runs, for whoever may have to stop it.

    Raises:
        SystemExit: a run was stopped from outside: the trial is not over.
        ValueError: its directory holds something else.
    """
    known = all(cell.training_flops for cell in cells)
    outcome = TrialOutcome(
        "complete",
        full_steps=sum(cell.max_steps for cell in cells),
        full_flops=sum(cell.training_flops for cell in cells) if known else None,
    )
    for number, cell in enumerate(cells):
        watch = _Watch(trial, cell, metric) if number == 0 else None
        stopped = _run_seed(cell, outcome, watch, lock, environment, processes)
        if stopped:
            outcome.state = stopped
            break
        rows = [row[metric] for row in metrics_of(cell) if metric in row]
        if not rows:
            outcome.state, outcome.message = "failed", f"{metric} was never logged"
            break
        outcome.values.append(rows[-1])
    if any(not math.isfinite(value) for value in outcome.values):
        outcome.state = "diverged"
    if outcome.state != "complete":
        outcome.values = []
    return outcome


class _Watch:
    """Passes validations on to Optuna."""

    def __init__(self, trial: Any, cell: Cell, metric: str) -> None:
        self.trial, self.cell, self.metric = trial, cell, metric
        self.reported = 0

    def should_stop(self) -> bool:
        """Reports what is new; whether the pruner has had enough. The last validation ends the run anyway."""
        if PRUNED in self.trial.user_attrs:
            return True
        for row in self.report():
            if row["step"] < self.cell.max_steps and self.trial.should_prune():
                # Written first: should we be killed now, the trial is not mistaken for one to be continued.
                self.trial.set_user_attr(PRUNED, int(row["step"]))
                return True
        return False

    def report(self) -> Iterator[dict[str, float]]:
        """Reports validations that are new, one by one."""
        rows = [row for row in metrics_of(self.cell) if self.metric in row]
        for row in rows[self.reported :]:
            self.reported += 1
            if self.reported not in self.trial.storage.get_trial(self.trial._trial_id).intermediate_values:
                self.trial.report(row[self.metric], self.reported)
            yield row

    def diverged(self) -> None:
        """To the sampler a run without end is worse than any other that came as far."""
        self.trial.report(math.inf, self.reported + 1)


def _run_seed(
    cell: Cell,
    outcome: TrialOutcome,
    watch: _Watch | None,
    lock: int | None,
    environment: dict[str, str] | None,
    processes: set[subprocess.Popen] | None,
) -> str:
    """Runs one cell and adds what it cost; "" when it came to its end, else how the trial ends with it."""
    if watch and watch.should_stop():  # decided by a process that was killed before it could say so
        _add_cost(cell, outcome, read_state(cell))
        return PRUNED
    state = read_state(cell)
    if state is None or not state.finished:
        state, arguments = prepare_run(cell)
        begin = time.monotonic()
        process = start_process(cell, arguments, lock, environment)
        processes = set() if processes is None else processes
        processes.add(process)
        try:
            pruned = _wait(process, watch.should_stop if watch else lambda: False)
        finally:
            processes.discard(process)
        state.seconds = round(time.monotonic() - begin, 2)
        if pruned:
            _add_cost(cell, outcome, state)
            return PRUNED
        if process.returncode in INTERRUPTED:
            raise SystemExit(128 + 15)
        try:
            state = conclude(cell, state, process.returncode)
        except RuntimeError:
            _add_cost(cell, outcome, state)
            outcome.message = state.message
            return "failed"
    _add_cost(cell, outcome, state)
    if state.status == "diverged":
        if watch:
            watch.diverged()
        outcome.message = state.message
        return "diverged"
    if watch:
        list(watch.report())  # what was logged between the last look and the end
    return ""


def _wait(process: subprocess.Popen, should_stop: Callable[[], bool]) -> bool:
    """Waits for the end; whether it was us who asked for it (the run saves and leaves)."""
    while True:
        try:
            process.wait(POLL_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            if should_stop():
                process.terminate()
                process.wait()
                return True


def _add_cost(cell: Cell, outcome: TrialOutcome, state: CellState | None) -> None:
    steps = _steps(cell)
    outcome.steps += steps
    outcome.seconds = round(outcome.seconds + (state.seconds if state else 0.0), 2)
    if cell.training_flops:
        outcome.flops = (outcome.flops or 0.0) + cell.training_flops * steps / cell.max_steps


def _steps(cell: Cell) -> int:
    """That were trained: by what the run said when it was stopped, else by its last line of metrics."""
    log = Path(cell.directory / LOG_FILE)
    found = STOPPED_AT.search(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else None
    if found and found[1]:
        return int(found[1])
    rows = metrics_of(cell)
    return int(rows[-1]["step"]) if rows else 0
