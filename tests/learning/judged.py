"""Judges answers in this process: what tests of all chapters share."""

import types
from typing import Any

import torch
import yaml

from lightning_gpt.learning.chapters import chapter
from lightning_gpt.learning.exercise import Exercise, Wrong


def named(number: str, name: str) -> Exercise:
    """The exercise of a chapter by the name of its file."""
    (found,) = [one for one in chapter(number).exercises if one.name == name]
    return found


def judged(of: Exercise, answer: Any) -> str | None:
    """None: it is right; else the message. `answer`: functions by name, or the text of a YAML, or its values."""
    torch.manual_seed(0)
    if isinstance(answer, str):
        answer = yaml.safe_load(answer)
    elif of.kind == "component":
        answer = types.SimpleNamespace(**answer)
    try:
        of.check(answer)
    except Wrong as wrong:
        return str(wrong)
    return None


def mistake(number: str, name: str, parts: dict[str, Any]) -> str:
    """What is said of our solution with some functions, or values, replaced."""
    of = named(number, name)
    ours = of.solution()
    if isinstance(ours, str):
        ours = yaml.safe_load(ours)
    return judged(of, {**ours, **parts}) or "it passed"
