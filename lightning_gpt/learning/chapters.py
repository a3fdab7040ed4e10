"""The thirteen chapters, and where each one's exercises are."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import replace
from functools import cache

from lightning_gpt.learning.exercise import Chapter, Exercise

MILESTONES = "milestones"
CHAPTERS = (
    Chapter("01", "01_configuration", "Configuration", "配置"),
    Chapter("02", "02_data", "Data", "数据"),
    Chapter("03", "03_training", "Training", "训练"),
    Chapter("04", "04_experiments", "Experiments", "做实验"),
    Chapter("05", "05_architecture", "Architecture", "模型结构"),
    Chapter("06", "06_scaling", "Scaling laws", "缩放定律"),
    Chapter("07", "07_improvements", "Improvements", "结构改进"),
    Chapter("08", "08_distributed", "Distributed", "分布式训练"),
    Chapter("09", "09_inference", "Inference", "推理"),
    Chapter("10", "10_production", "Production", "生产环境"),
    Chapter("11", "11_multimodal", "Pictures and words", "图像与文字"),
    Chapter("12", "12_experts", "Experts", "专家混合"),
    Chapter("13", "13_alignment", "Alignment", "对齐"),
    Chapter(MILESTONES, MILESTONES, "Milestones", "里程碑"),
)


@cache
def chapter(number: str) -> Chapter:
    """A chapter with its exercises.

    Raises:
        ValueError: there is none of that number.
    """
    known = {one.number: one for one in CHAPTERS} | {one.folder: one for one in CHAPTERS}
    found = known.get(number) or known.get(number.zfill(2))
    if found is None:
        near = difflib.get_close_matches(number, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"chapter {number!r} is none of 01 to 13 or {MILESTONES}{hint}")
    module = MILESTONES if found.number == MILESTONES else f"chapter_{found.number}"
    exercises = importlib.import_module(f"lightning_gpt.learning.{module}").EXERCISES
    numbered = (replace(one, id=f"{found.number}.{place}") for place, one in enumerate(exercises, 1))
    return replace(found, exercises=tuple(numbered))


def chapters() -> list[Chapter]:
    """All of them, with their exercises."""
    return [chapter(one.number) for one in CHAPTERS]


def chosen(what: str) -> tuple[Chapter, list[Exercise]]:
    """The exercises that 05 or 05.3 names.

    Raises:
        ValueError: it names none.
    """
    number, dot, which = what.partition(".")
    found = chapter(number)
    if not dot:
        return found, list(found.exercises)
    one = [exercise for exercise in found.exercises if exercise.id == f"{found.number}.{which}"]
    if not one:
        ids = ", ".join(exercise.id for exercise in found.exercises)
        raise ValueError(f"exercise {what} does not exist: chapter {found.number} has {ids}")
    return found, one
