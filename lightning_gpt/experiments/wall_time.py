"""Budgets in seconds: a short measured run of each variant says how many steps they pay for."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.planning.calibration import Calibration, calibrate

CALIBRATION_STEPS = 40


def calibrated(variant: str, configs: Sequence[Path], settings: dict[str, Any], directory: Path) -> Calibration:
    """What a step and a validation of a variant take on this machine, measured once and kept.

    Runs are thereby of a fixed number of steps: a killed experiment goes on with the steps that it began with, and
    losses do not depend on what else the machine does, though how fair the comparison is does.

    Args:
        variant: its name.
        configs: as -c of `lightning-gpt fit`.
        settings: nested, laid over them.
        directory: where calibrations are kept.

    Raises:
        ValueError: the calibration run failed; gives its reason.
    """
    text = json.dumps([[str(path) for path in configs], settings], sort_keys=True)
    bases = b"".join(path.read_bytes() for path in configs)
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} {os.environ.get('OMP_NUM_THREADS', '')}"
    digest = hashlib.sha256(text.encode() + bases + machine.encode()).hexdigest()[:12]
    kept = directory / f"{variant}_{digest}.json"
    if kept.exists():
        return Calibration(**json.loads(kept.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as scratch:
        laid = Path(scratch, "settings.yaml")
        laid.write_text(yaml.safe_dump(settings), encoding="utf-8")
        files = [word for path in (*configs, laid) for word in ("-c", str(path))]
        try:
            found = calibrate(files, CALIBRATION_STEPS)
        except RuntimeError as error:
            raise ValueError(f"variants.{variant}: {error}") from None
    directory.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    os.replace(temporary, kept)
    return found


def steps_within(seconds: float, found: Calibration, validations: int) -> int:
    """Optimizer steps of a run of at most so many seconds of training and validation, a multiple of `validations`.

    The start of the process is not counted: it is the same for all and says nothing of the variant.

    Raises:
        ValueError: not even one step between two validations.
    """
    left = seconds - validations * found.validation_seconds
    steps = int(left / found.step_seconds / validations) * validations
    if steps < 1:
        needed = validations * (found.step_seconds + found.validation_seconds)
        raise ValueError(f"is too small: {validations} step(s) with a validation each take about {needed:.3g} s")
    return steps


def predicted_seconds(found: Calibration, steps: int, validations: int) -> float:
    """Of training and validation."""
    return steps * found.step_seconds + validations * found.validation_seconds
