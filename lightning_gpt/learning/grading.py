"""Grades a learner's files, each in a process that can be stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightning_gpt.learning.exercise import Exercise

JUDGING = 600.0
"""Seconds after which what reads runs is stopped: it has no endless loop, but may share its machine with training."""


@dataclass(frozen=True)
class Grade:
    """What came of an answer."""

    right: bool
    message: str


def grade(exercise: Exercise, path: Path, seconds: float | None = None) -> Grade:
    """Judges one file.

    Args:
        exercise: which.
        path: the learner's file.
        seconds: until it is stopped; None = the exercise's, and more where nothing of the learner's is run.
    """
    if not path.is_file():
        return Grade(False, f"{path} does not exist: lightning-gpt learn start {exercise.id}")
    if seconds is None:
        seconds = exercise.seconds if exercise.kind == "component" else JUDGING
    path = path.resolve()
    with tempfile.TemporaryDirectory() as place:
        result, log = Path(place) / "result.json", Path(place) / "log"
        command = [sys.executable, "-m", "lightning_gpt.learning.examine", exercise.id, str(path), str(result)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": search_path()}
        with open(log, "wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                why = "is there an endless loop?" if exercise.kind == "component" else "is the machine busy?"
                return Grade(False, f"still computing after {seconds:g} s: {why}")
            finally:
                stop(child)
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(result.read_text(encoding="utf-8"))
            return Grade(found["right"], found["message"])
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        return Grade(False, f"the process that ran it ended with {ended}{f': {lines[-1]}' if lines else ''}")


def stop(child: subprocess.Popen) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def search_path() -> str:
    """Where Python finds this package, however it was started."""
    root = str(Path(__file__).parents[2])
    others = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, (root, others)))
