"""Budgets of wall time: what a step of a variant takes here, measured once and kept beside its runs.

A budget in seconds must become a number of steps before the first run, the same for all seeds: a run that stops when a
clock says so cannot be made again, and its schedule does not know its end. So short real runs tell the seconds of a
step, and the budget divided by them is the number of steps. It is never measured again: an experiment that goes on
after a kill must find the runs it has.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.experiments.locks import locked
from lightning_gpt.experiments.machine import hardware, hardware_in_words
from lightning_gpt.experiments.spec import Experiment
from lightning_gpt.planning.calibration import STEPS, Calibration, calibrate

SECONDS = 5.0
"""Of training that the second measurement lasts at least, unless the budget is less: steps of a small network take
about a millisecond, and forty of them say little."""
ROUNDING = 0.05
"""By which share the steps may miss the budget, for validations that must divide them. Seconds of a step are not known
to the percent, and nobody can choose a budget that they divide."""


@dataclass(frozen=True)
class StepTime:
    """A measurement, as it is kept."""

    settings_hash: str
    """Of all that decides how long a step takes, and of the corpus."""
    machine: str
    """In words."""
    step_seconds: float
    """Of one optimizer step: median over intervals of the short run, validations not counted."""
    steps: int
    """That it was measured over."""


def check_where(experiment: Experiment, engine: str, parallel: int) -> None:
    """Refuses to measure wall time here for runs that another machine or a shared one will do.

    Args:
        experiment: the checked file.
        engine: name of it.
        parallel: runs at a time.

    Raises:
        ValueError: it asks for seconds, of runs elsewhere or side by side.
    """
    if not experiment.knows_seconds:
        return
    if engine != "local":
        raise ValueError(f"engine={engine}: seconds of a step are measured on this machine, its runs are on others")
    if parallel > 1:
        raise ValueError(f"parallel={parallel}: runs side by side slow each other, and the budget is in seconds: use 1")


@dataclass(frozen=True)
class Asked:
    """A variant whose step shall be measured."""

    variant: str
    settings_hash: str
    """Variants that share it share the measurement."""
    configs: Sequence[Path]
    """As -c of fit."""
    settings: dict[str, Any]
    """Nested, laid over them."""
    seconds: float
    """Its budget: no measurement needs to be longer."""


def step_times(directory: Path, asked: Sequence[Asked]) -> dict[str, StepTime]:
    """The measurements that are kept in `directory`, and new ones of what has none; by settings_hash.

    All are measured once, then all again, and the shorter step counts: other work on the machine can only lengthen it,
    and it comes and goes within minutes, which would favour one variant.

    Args:
        directory: of measurements; made if need be.
        asked: one or more.

    Raises:
        ValueError: a kept one is of another machine; says what to do.
        RuntimeError: a short run failed; gives its last line.
    """
    directory.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        print("steps are being measured by another process: waiting for it", file=sys.stderr)

    with locked(directory / "measuring.lock", waiting):
        first = {one.settings_hash: one for one in reversed(asked)}
        kept = {key: _read(directory, one.variant, key) for key, one in first.items()}
        missing = [one for one in asked if first[one.settings_hash] is one and kept[one.settings_hash] is None]
        rounds = [_measured(one, STEPS) for one in missing]
        for one, before in zip(missing, rounds):
            steps = max(STEPS, int(min(SECONDS, one.seconds) / before.step_seconds))
            found = min((before, _measured(one, steps)), key=lambda either: either.step_seconds)
            made = StepTime(one.settings_hash, hardware_in_words(hardware()), found.step_seconds, found.steps)
            _write(_path(directory, one.settings_hash), made)
            kept[one.settings_hash] = made
    return kept


def _path(directory: Path, settings_hash: str) -> Path:
    return directory / f"{settings_hash[:16]}.json"


def _read(directory: Path, variant: str, settings_hash: str) -> StepTime | None:
    path = _path(directory, settings_hash)
    try:
        kept = StepTime(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to measure anew") from None
    if kept.machine != (here := hardware_in_words(hardware())):
        raise ValueError(
            f"{variant}: its budget of wall time was turned into steps on {kept.machine}; this is {here}: go on there, "
            f"or delete {path} to measure anew (its finished runs are then done again)"
        )
    return kept


def _write(path: Path, made: StepTime) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _measured(asked: Asked, steps: int) -> Calibration:
    with tempfile.TemporaryDirectory(prefix="step_time_") as scratch:
        path = Path(scratch, "settings.yaml")
        path.write_text(yaml.safe_dump(asked.settings, sort_keys=False), encoding="utf-8")
        fit = [part for one in (*asked.configs, path) for part in ("-c", str(one))]
        found = calibrate(fit, steps, validate=False)
    print(
        f"{asked.variant}: {1000 * found.step_seconds:.4g} ms a step, over {found.steps} steps",
        file=sys.stderr,
        flush=True,
    )
    return found


def steps_that_fill(seconds: float, step_seconds: float, validations: int, variant: str) -> int:
    """Optimizer steps of a budget, a multiple of the number of validations.

    Args:
        seconds: of training.
        step_seconds: of one step.
        validations: of a run.
        variant: for messages.

    Raises:
        ValueError: not enough for a step, or too few steps for the validations; names the variant.
    """
    exact = seconds / step_seconds
    if exact < 1:
        raise ValueError(
            f"budget.seconds={seconds:g} is too small for one step of {variant}: a step takes {step_seconds:.3g} s here"
        )
    steps = round(exact / validations) * validations
    if steps == 0 or abs(steps / exact - 1) > ROUNDING:
        raise ValueError(
            f"budget.seconds={seconds:g} pays for {exact:.1f} steps of {variant} here, which {validations} "
            f"validations cannot divide within {ROUNDING:.0%}: raise the budget or lower `validations`"
        )
    return steps
