"""Runs a search: workers that take trials from one study until there are no more.

Any number of processes may do this at once on one directory, and any of them may be killed: a trial belongs to whoever
holds the lock of its number, and a trial that is running but that nobody holds is taken up where it stands.
"""

import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lightning_gpt.experiments.engines import LocalEngine
from lightning_gpt.experiments.live import duration
from lightning_gpt.experiments.locks import locked, try_lock
from lightning_gpt.experiments.plan import Cell, Check, plan_cells
from lightning_gpt.experiments.search_space import Range
from lightning_gpt.experiments.search_spec import Search
from lightning_gpt.experiments.search_study import (
    LOCK_FILE,
    STUDY_FILE,
    adopted,
    asked,
    check_identity,
    import_optuna,
    open_study,
    settings_of,
)
from lightning_gpt.experiments.search_trial import TrialOutcome, run_trial
from lightning_gpt.experiments.settings import nested

SEARCHES = Path("runs/searches")
WAIT_SECONDS = 0.5
SMOKE_TRIALS = 2
OUTCOME = "outcome/"
"""Begins the names of a trial's attributes that say how it ended."""
HOPELESS = 3
"""So many failures with no other outcome, and the fault is not in what was drawn."""


def directory_of(search: Search, runs: Path = SEARCHES, smoke: bool = False) -> Path:
    """Of all its trials."""
    return runs / ("smoke" if smoke else "") / search.base.chapter / search.base.name


def trial_name(number: int) -> str:
    """Of its directory."""
    return f"trial_{number:04d}"


def check_space(search: Search, check: Check) -> None:
    """Sees that training takes every setting of the space: the ends of the ranges, every choice, the start.

    Args:
        search: of load_search.
        check: configs and nested settings -> ValueError.

    Raises:
        ValueError: one line that names the setting.
    """
    placeholder = {"data.init_args.data_dir": "data"} if search.base.prepare else {}
    examples = {key: dimension.examples() for key, dimension in search.space.items()}
    rounds = [
        {key: values[min(number, len(values) - 1)] for key, values in examples.items()}
        for number in range(max(map(len, examples.values())))
    ]
    for settings in rounds:
        variant = search.variant("space", settings)
        try:
            check(search.base.configs, nested({**placeholder, **search.base.overrides, **variant.overrides}))
        except ValueError as error:
            text = str(error)
            reals = [key for key, one in search.space.items() if isinstance(one, Range) and not one.int]
            wants_int = "expected int" in text and any(key.rpartition(".")[2] in text for key in reals)
            hint = " (for whole numbers say int: true)" if wants_int else ""
            raise ValueError(f"{search.base.path}: space: {text}{hint}") from None


@dataclass
class _Claim:
    """A trial that this thread has to run."""

    trial: Any
    cells: list[Cell]
    lock: IO[str]
    refused: str = ""
    """Why no run can have its settings."""


class SearchRun:
    """One process' part in a search.

    Args:
        search: of load_search.
        parallel: trials at a time.
        runs: where directories of searches are.
        smoke: two steps a trial, two trials, beside the real ones.
    """

    def __init__(self, search: Search, parallel: int = 1, runs: Path = SEARCHES, smoke: bool = False) -> None:
        if parallel < 1:
            raise ValueError(f"parallel={parallel} must be at least 1")
        self.search, self.parallel, self.runs, self.smoke = search, parallel, runs, smoke
        self.trials = min(search.trials, SMOKE_TRIALS) if smoke else search.trials
        self.directory = directory_of(search, runs, smoke)
        self.processes: set[subprocess.Popen] = set()
        self._stop = threading.Event()
        self._say = threading.Lock()
        self._ended, self._begin = 0, time.monotonic()
        self._error: BaseException | None = None

    def run(self, restart: bool = False) -> Any:
        """Runs what is left; returns the study with all trials finished.

        Args:
            restart: throw away the trials of earlier calls.

        Raises:
            ValueError: the directory holds another search; one line.
            RuntimeError: nothing but failures.
            SystemExit, KeyboardInterrupt: stopped; the next call goes on.
        """
        import_optuna()
        if restart and (self.directory / STUDY_FILE).exists():
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._alone():
            study = open_study(self.search, self.directory)
            check_identity(self.search, study)
            before = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
        if before:
            self._print(f"{min(len(before), self.trials)} of {self.trials} trials are finished already")
        engine = LocalEngine(self.parallel)
        threads = [
            threading.Thread(target=self._work, args=(engine.environment(slot),), daemon=True)
            for slot in range(self.parallel)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.05)  # not join: signals must get through
        except BaseException:
            self._stop.set()
            for process in list(self.processes):
                process.terminate()  # saves and leaves
            for thread in threads:
                thread.join()
            raise
        if self._error:
            raise self._error
        return self._study()

    def _alone(self):
        return locked(self.directory / LOCK_FILE)

    def _study(self) -> Any:
        return open_study(self.search, self.directory)

    def _cells(self, name: str, settings: dict[str, Any]) -> list[Cell]:
        return plan_cells(self.search.experiment(name, settings), self.runs, self.smoke)

    def _work(self, environment: dict[str, str]) -> None:
        """A worker's life."""
        try:
            with self._alone():
                study = self._study()
            while not self._stop.is_set():
                claim = self._claim(study)
                if claim is None:
                    return
                if claim == "wait":
                    self._stop.wait(WAIT_SECONDS)
                    continue
                with closing(claim.lock):
                    self._tell(study, claim.trial, self._outcome(claim, environment))
        except BaseException as error:
            if not self._stop.is_set():
                self._error = self._error or error
                self._stop.set()
                for process in list(self.processes):
                    process.terminate()

    def _outcome(self, claim: _Claim, environment: dict[str, str]) -> TrialOutcome:
        if claim.refused:
            return TrialOutcome("failed", message=claim.refused)
        lock = claim.lock.fileno()
        return run_trial(claim.trial, claim.cells, self.search.metric, lock, environment, self.processes)

    def _claim(self, study: Any) -> Any:
        """A trial to run; "wait" while others run the last ones; None when all are finished."""
        states = import_optuna().trial.TrialState
        with self._alone():
            trials = study.get_trials(deepcopy=False)
            running = [one for one in trials if one.state == states.RUNNING]
            for one in running:
                if lock := try_lock(self._lock_of(one.number)):
                    trial = adopted(self.search, study, one._trial_id)
                    return self._claimed(trial, lock)
            begun = [one for one in trials if one.state != states.WAITING]
            if len(begun) >= self.trials:
                return "wait" if running else None
            trial = asked(self.search, study)
            lock = try_lock(self._lock_of(trial.number))
            assert lock is not None, "a new trial is nobody's"
            return self._claimed(trial, lock)

    def _lock_of(self, number: int) -> Path:
        return self.directory / f".{trial_name(number)}.lock"

    def _claimed(self, trial: Any, lock: IO[str]) -> _Claim:
        try:
            return _Claim(trial, self._cells(trial_name(trial.number), settings_of(self.search, trial.params)), lock)
        except ValueError as error:  # such as a width that the heads do not divide
            return _Claim(trial, [], lock, str(error))
        except BaseException:
            lock.close()
            raise

    def _tell(self, study: Any, trial: Any, outcome: TrialOutcome) -> None:
        """Writes down how a trial ended, and keeps the checkpoints of the best alone."""
        states = import_optuna().trial.TrialState
        for name, value in asdict(outcome).items():
            trial.set_user_attr(OUTCOME + name, value)
        with self._alone():
            if outcome.state == "complete":
                study.tell(trial, outcome.value)
            else:
                # Diverged ones count as pruned: samplers learn from these, and nothing from failures.
                failed = outcome.state == "failed"
                study.tell(trial, state=states.FAIL if failed else states.PRUNED)
            trials = study.get_trials(deepcopy=False)
            complete = [one for one in trials if one.state == states.COMPLETE]
            best = min(complete, key=lambda one: one.value, default=None)
            for one in trials:
                if one.state.is_finished() and one is not best:
                    for place in (self.directory / trial_name(one.number)).glob("seed_*/version_*/checkpoints"):
                        shutil.rmtree(place, ignore_errors=True)
        self._show(trial.number, outcome, trials, best)
        ended = [one for one in trials if one.state.is_finished()]
        if len(ended) >= HOPELESS and all(one.state == states.FAIL for one in ended):
            raise RuntimeError(
                f"the first {len(ended)} trials failed, the last with: {outcome.message} (logs under {self.directory})"
            )

    def _show(self, number: int, outcome: TrialOutcome, trials: list[Any], best: Any) -> None:
        done = sum(one.state.is_finished() for one in trials)
        self._ended += 1
        left = (time.monotonic() - self._begin) / self._ended * (self.trials - done)
        what = {
            "complete": f"{self.search.metric} {outcome.value or 0:.4f}",
            "pruned": f"pruned at step {outcome.steps}",
        }.get(outcome.state, f"{outcome.state}: {outcome.message}")
        lead = f", best {best.value:.4f} (trial {best.number})" if best else ""
        eta = f", about {duration(left)} left" if done < self.trials else ""
        self._print(f"trial {done}/{self.trials}  number {number}: {what} in {outcome.seconds:.0f} s{lead}{eta}")

    def _print(self, text: str) -> None:
        with self._say:
            print(text, file=sys.stderr, flush=True)
