"""One cell's training run: a fresh process, its state kept beside it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.experiments.locks import locked
from lightning_gpt.experiments.plan import Cell

STATE_FILE = "state.json"
LOCK_FILE = "running.lock"
LOG_FILE = "fit.log"
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
    """Largest resident memory of its process; None: it had no process of its own."""
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


def write_state(cell: Cell, state: CellState) -> None:
    """Replaces state.json, whole or not at all."""
    path = cell.directory / STATE_FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n")
    os.replace(temporary, path)


def metrics_of(cell: Cell) -> list[dict[str, float]]:
    """Rows that the cell's run logged."""
    path = cell.directory / "version_0" / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def prepare_run(cell: Cell) -> tuple[CellState, list[str]]:
    """Readies the directory and marks the cell as running.

    Returns:
        its state, and the arguments of `lightning-gpt` that run it, from its last checkpoint if there is one.

    Raises:
        ValueError: the directory holds something else.
    """
    before, resume = read_state(cell), []
    if before and (cell.directory / "version_0" / "checkpoints" / "last.ckpt").exists():
        resume = ["--ckpt_path", "last"]
    else:
        _clear(cell.directory)
    cell.directory.mkdir(parents=True, exist_ok=True)
    config = cell.directory / "config.yaml"
    config.write_text(yaml.safe_dump(cell.settings, sort_keys=False), encoding="utf-8")
    state = CellState(cell.config_hash, "running", attempts=before.attempts + 1 if before else 1)
    write_state(cell, state)
    if cell.measure:
        return state, ["experiment", "measure", str(config)]
    stacked = [part for path in (*cell.configs, config) for part in ("-c", str(path))]
    return state, ["fit", *stacked, *resume]


def conclude(cell: Cell, state: CellState, status: int) -> CellState:
    """Writes down how a run ended.

    Args:
        status: exit status; 0 is good.

    Raises:
        RuntimeError: it failed otherwise than by diverging; names its log and gives its last line.
    """
    log = cell.directory / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    state.message = lines[-1].removeprefix("lightning-gpt: error: ") if status and lines else ""
    if status and not DIVERGED.search(state.message):
        raise RuntimeError(
            f"{cell.variant} seed {cell.seed} failed with status {status}: {state.message} "
            f"(all of it: {log}); finished cells are kept"
        )
    state.status = "diverged" if status else "done"
    write_state(cell, state)
    return state


def run_cell(
    cell: Cell, environment: Mapping[str, str] | None = None, processes: set[subprocess.Popen] | None = None
) -> CellState:
    """Trains one cell in a process of its own, from its last checkpoint or from the start.

    A process that an earlier call left behind (that call was killed, its run was not) is waited for, then continued.

    Args:
        cell: of plan_cells.
        environment: variables laid over this process'.
        processes: holds the process while it runs, for whoever may have to stop it.

    Raises:
        RuntimeError: as conclude.
        ValueError: as prepare_run.
    """
    place = cell.directory.parent
    place.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        name = f"{cell.variant} seed {cell.seed}"
        print(f"{name} is still being run by a process of an earlier call: waiting for it", file=sys.stderr)

    with locked(place / f".{cell.directory.name}.{LOCK_FILE}", waiting) as lock:
        if (state := read_state(cell)) and state.finished:
            return state
        state, arguments = prepare_run(cell)
        begin = time.monotonic()
        process = start_process(cell, arguments, lock, environment)
        processes = set() if processes is None else processes
        processes.add(process)
        try:
            status, state.peak_memory_bytes = _wait(process)
        finally:
            processes.discard(process)
        state.seconds = round(time.monotonic() - begin, 2)
        return conclude(cell, state, status)


def start_process(
    cell: Cell, arguments: list[str], lock: int | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts `lightning-gpt` with its output in the cell's log.

    Args:
        arguments: of prepare_run.
        lock: descriptor of a lock that the run holds as long as it lives, whatever becomes of us.
        environment: variables laid over this process'.
    """
    with open(cell.directory / LOG_FILE, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lightning_gpt", *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            pass_fds=[lock] if lock is not None else [],
        )


def _clear(directory: Path) -> None:
    """Removes an earlier run of other settings, or one that had not come to a checkpoint."""
    if (directory / STATE_FILE).exists():
        shutil.rmtree(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not a run of an experiment: move it away")


def _wait(process: subprocess.Popen) -> tuple[int, int | None]:
    """Exit status and peak resident memory in bytes."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
