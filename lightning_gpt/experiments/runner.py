"""Runs cells one after the other, each in a fresh process, and never one twice."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.experiments.plan import Cell

STATE_FILE = "state.json"
DIVERGED = re.compile(r"the (loss|gradient norm) is (nan|-?inf)")
"""How training says that it stopped because numbers ceased to be finite."""


@dataclass
class CellState:
    """What is known of a cell, kept beside its run."""

    config_hash: str
    status: str
    """running (also after a kill), done, or diverged: the loss or gradient was no longer finite."""
    attempts: int = 1
    """Processes that worked on it; more than one: it was stopped and resumed or restarted."""
    seconds: float = 0.0
    """Wall time of the last attempt, process start and validations included."""
    peak_memory_bytes: int | None = None
    """Largest resident memory of its process."""
    message: str = ""

    @property
    def finished(self) -> bool:
        """Whether running it again could not tell anything new."""
        return self.status in ("done", "diverged")


def read_state(cell: Cell) -> CellState | None:
    """The state of a cell under its present settings; None: never started, or under other settings."""
    try:
        state = CellState(**json.loads((cell.directory / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if state.config_hash == cell.config_hash else None


def metrics_of(cell: Cell) -> list[dict[str, float]]:
    """Rows that the cell's run logged."""
    path = cell.directory / "version_0" / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def run_cells(cells: list[Cell], metric: str) -> None:
    """Runs what is not finished yet, with a plain line per cell on stderr.

    Args:
        cells: of plan_cells.
        metric: shown for each.

    Raises:
        RuntimeError: a cell failed otherwise than by diverging; the finished ones are kept.
    """
    waiting = [cell for cell in cells if not (state := read_state(cell)) or not state.finished]
    if len(waiting) < len(cells):
        print(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished already", file=sys.stderr)
    started = time.monotonic()
    for number, cell in enumerate(waiting):
        done = time.monotonic() - started
        eta = f", about {_duration(done / number * (len(waiting) - number))} left" if number else ""
        print(f"cell {cells.index(cell) + 1}/{len(cells)}  {cell.variant} seed {cell.seed} ...{eta}", file=sys.stderr)
        state = run_cell(cell)
        values = [row[metric] for row in metrics_of(cell) if metric in row]
        outcome = state.message if state.status == "diverged" else f"{metric} {values[-1]:.4f}" if values else "done"
        print(f"  {outcome}  in {state.seconds:.0f} s", file=sys.stderr, flush=True)


def run_cell(cell: Cell) -> CellState:
    """Trains one cell from its last checkpoint, or from the start.

    Raises:
        RuntimeError: the process failed; names its log and gives its last line.
    """
    before, arguments = read_state(cell), []
    if before and (cell.directory / "version_0" / "checkpoints" / "last.ckpt").exists():
        arguments = ["--ckpt_path", "last"]
    else:
        _clear(cell.directory)
    cell.directory.mkdir(parents=True, exist_ok=True)
    config = cell.directory / "config.yaml"
    config.write_text(yaml.safe_dump(cell.settings, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "lightning_gpt", "fit"]
    for path in (*cell.configs, config):
        command += ["-c", str(path)]
    state = CellState(cell.config_hash, "running", attempts=before.attempts + 1 if before else 1)
    _write(cell, state)
    begin = time.monotonic()
    with open(cell.directory / "fit.log", "wb") as log:
        status, state.peak_memory_bytes = _wait(subprocess.Popen([*command, *arguments], stdout=log, stderr=log))
    state.seconds = round(time.monotonic() - begin, 2)
    lines = (cell.directory / "fit.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    state.message = lines[-1].removeprefix("lightning-gpt: error: ") if status and lines else ""
    if status and not DIVERGED.search(state.message):
        raise RuntimeError(
            f"{cell.variant} seed {cell.seed} failed with status {status}: {state.message} "
            f"(all of it: {cell.directory / 'fit.log'}); finished cells are kept"
        )
    state.status = "diverged" if status else "done"
    _write(cell, state)
    return state


def _clear(directory: Path) -> None:
    """Removes an earlier run of other settings, or one that had not come to a checkpoint."""
    if (directory / STATE_FILE).exists():
        shutil.rmtree(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not a run of an experiment: move it away")


def _wait(process: subprocess.Popen) -> tuple[int, int | None]:
    """Exit status and peak resident memory in bytes."""
    try:
        if not hasattr(os, "wait4"):
            return process.wait(), None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except KeyboardInterrupt:
        process.wait()  # the terminal has sent it Ctrl-C too: it saves and leaves
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _write(cell: Cell, state: CellState) -> None:
    path = cell.directory / STATE_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n")
    os.replace(temporary, path)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes}:{second:02d}"
