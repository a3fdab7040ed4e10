"""Judges one answer in a process of its own: `python -m lightning_gpt.learning.examine 05.3 FILE RESULT`.

An answer may loop for ever, exhaust memory or exit: what started this process sees that it did, and says so.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_gpt.learning.chapters import chosen
from lightning_gpt.learning.exercise import Exercise, Wrong

FILE_BYTES = 64 << 20
"""Of the largest file that an answer may write."""


def imported(path: Path) -> ModuleType:
    """The learner's file as a module; its self-test does not run."""
    spec = importlib.util.spec_from_file_location("answer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["answer"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def values(path: Path) -> dict[str, Any]:
    """The learner's YAML.

    Raises:
        Wrong: it is no mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Wrong(f"line {mark.line + 1 if mark else '?'} is no YAML") from None
    if not isinstance(found, dict):
        raise Wrong("the file has no `name: value` lines")
    return found


def judge(exercise: Exercise, path: Path) -> tuple[bool, str]:
    """(right, what there is to say) about an answer."""
    try:
        answer = imported(path) if exercise.kind == "component" else values(path)
        return True, exercise.check(answer) or ""
    except Wrong as wrong:
        return False, str(wrong)
    except NotImplementedError as error:
        return False, f"{where(error, path)}not written yet"
    except SyntaxError as error:
        return False, f"line {error.lineno}: {error.msg}"
    except (Exception, SystemExit) as error:
        text = str(error).strip().splitlines()
        return False, f"{where(error, path)}{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def where(error: BaseException, path: Path) -> str:
    """ "line 12: ", the last one of the learner's own file; empty when the error is not from there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"line {lines[-1]}: " if lines else ""


def limit_files() -> None:
    """No file grows beyond a limit: a loop that prints warnings would fill the disk."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))


def main(exercise_id: str, path: str, result: str) -> None:
    """Judges and writes {"right": ..., "message": ...}."""
    limit_files()
    _, (exercise,) = chosen(exercise_id)
    if exercise.kind == "component":
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
    right, message = judge(exercise, Path(path))
    Path(result).write_text(json.dumps({"right": right, "message": message}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
