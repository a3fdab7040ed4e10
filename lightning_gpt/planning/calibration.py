"""What a step, a validation and the start of a run take here, from a short run of the same configuration."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

STEPS = 40
"""Of a calibration run, by default."""
INTERVALS = 8
"""Logged intervals of a calibration run; the first is left out: it holds the warm-up of allocator and caches."""


@dataclass(frozen=True)
class Calibration:
    """Measured seconds."""

    start_seconds: float
    """From the start of the process to the first step, what the first steps take longer, and the end of the process."""
    step_seconds: float
    """One optimizer step, median over intervals."""
    validation_seconds: float
    """One validation pass."""
    tokens_per_second: float
    """All devices."""
    steps: int
    """That it was measured over."""

    def run_seconds(self, steps: int, validations: int) -> float:
        """Wall time of a whole run; checkpoints and samples are not counted."""
        return self.start_seconds + steps * self.step_seconds + validations * self.validation_seconds


def calibrate(fit: Sequence[str], steps: int = STEPS, validate: bool = True) -> Calibration:
    """Runs `lightning-gpt fit` for a few steps and one validation, in a directory that is thrown away.

    Args:
        fit: arguments of `lightning-gpt fit`, such as -c files.
        steps: optimizer steps, at least INTERVALS.
        validate: measure a validation; else one batch of it is all there is, and validation_seconds means nothing.

    Raises:
        ValueError: too few steps.
        RuntimeError: the run failed; gives its last line.
    """
    if steps < INTERVALS:
        raise ValueError(f"steps={steps} must be at least {INTERVALS} for a calibration")
    interval = steps // INTERVALS
    steps = interval * INTERVALS
    with tempfile.TemporaryDirectory(prefix="calibration_") as scratch:
        trainer = {"max_steps": steps, "log_every_n_steps": interval, "val_check_interval": steps}
        if not validate:
            trainer["limit_val_batches"] = 1
        run = {"dir": scratch, "name": "run", "tensorboard": False}
        short = Path(scratch, "short.yaml")
        short.write_text(yaml.safe_dump({"run": run, "trainer": trainer}))
        command = [sys.executable, "-m", "lightning_gpt", "fit", *fit, "-c", str(short)]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        wall = time.perf_counter() - begin
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"the calibration run failed: {lines[-1].removeprefix('lightning-gpt: error: ')}")
        content = Path(scratch, "run", "version_0", "metrics.jsonl").read_text()
    return calibration_from([json.loads(line) for line in content.splitlines()], wall)


def calibration_from(rows: list[dict[str, float]], wall: float) -> Calibration:
    """The numbers of a run that has ended.

    Args:
        rows: of its metrics.jsonl; the speed of the first interval is left out.
        wall: seconds from the start of its process to its end.
    """
    trained = [row for row in rows if "speed/tokens_per_second" in row]
    rate = median(row["speed/tokens_per_second"] for row in trained[1:])
    steps, tokens = int(trained[-1]["step"]), trained[-1]["progress/tokens"]
    step_seconds = tokens / steps / rate
    validations = [row["speed/validation_seconds"] for row in rows if "speed/validation_seconds" in row]
    rest = wall - steps * step_seconds - sum(validations)
    return Calibration(max(0.0, rest), step_seconds, median(validations) if validations else 0.0, rate, steps)
