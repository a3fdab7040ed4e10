"""Budgets of wall time: what a step of a variant takes here, measured once and kept beside its runs.

A budget in seconds must become a number of steps before the first run, the same for all seeds: a run that stops when a
clock says so cannot be made again, and its schedule does not know its end. So a short real run tells the seconds of a
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
"""Of training that a measurement lasts at least, unless the budget is less: steps of a small network take about a
millisecond, and forty of them say little."""
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


def step_time(
    directory: Path, settings_hash: str, configs: Sequence[Path], settings: dict[str, Any], variant: str, seconds: float
) -> StepTime:
    """The measurement that is kept in `directory`, or a new one.

    Args:
        directory: of measurements; made if need be.
        settings_hash: names the measurement.
        configs: as -c of fit.
        settings: nested, laid over them.
        variant: for messages.
        seconds: the budget: no measurement needs to be longer.

    Raises:
        ValueError: the kept one is of another machine; says what to do.
        RuntimeError: the short run failed; gives its last line.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{settings_hash[:16]}.json"

    def waiting() -> None:
        print(f"the step time of {variant} is being measured by another process: waiting for it", file=sys.stderr)

    with locked(path.with_suffix(".lock"), waiting):
        if (kept := _read(path)) is not None:
            if kept.machine != (here := hardware_in_words(hardware())):
                raise ValueError(
                    f"{variant}: its budget of wall time was turned into steps on {kept.machine}; this is {here}: go "
                    f"on there, or delete {path} to measure anew (its finished runs are then done again)"
                )
            return kept
        print(f"measuring the step time of {variant}", file=sys.stderr, flush=True)
        found = _measured(configs, settings, seconds)
        kept = StepTime(settings_hash, hardware_in_words(hardware()), found.step_seconds, found.steps)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(kept), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return kept


def _read(path: Path) -> StepTime | None:
    try:
        return StepTime(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to measure anew") from None


def _measured(configs: Sequence[Path], settings: dict[str, Any], seconds: float) -> Calibration:
    with tempfile.TemporaryDirectory(prefix="step_time_") as scratch:
        path = Path(scratch, "settings.yaml")
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        fit = [part for one in (*configs, path) for part in ("-c", str(one))]
        found = calibrate(fit, validate=False)
        steps = int(min(SECONDS, seconds) / found.step_seconds)
        return calibrate(fit, steps, validate=False) if steps > 2 * STEPS else found


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
