"""The report's pictures, as PNG files in memory."""

from __future__ import annotations

import io
import math
from typing import Any

Content = dict[str, Any]


def _tasks(columns: list[Content]) -> list[str]:
    """Those whose numbers lie between 0 and 1."""
    return [task for task, row in columns[0]["results"].items() if row["metric"] != "bits per byte"]


def bars(columns: list[Content]) -> bytes | None:
    """Every task of every model with 1.96 standard errors, guessing as a line; None when there is no task."""
    from matplotlib.figure import Figure

    tasks = _tasks(columns)
    if not tasks:
        return None
    figure = Figure(figsize=(max(6, 0.8 * len(tasks) + 2), 4))
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, one in enumerate(columns):
        rows = [(place, one["results"][task]) for place, task in enumerate(tasks) if task in one["results"]]
        places = [place + (number - (len(columns) - 1) / 2) * width for place, _ in rows]
        errors = [1.96 * (row.get("stderr") or 0.0) for _, row in rows]
        axes.bar(places, [row["value"] for _, row in rows], width, yerr=errors, capsize=2, label=one["name"])
    for place, task in enumerate(tasks):
        chance = columns[0]["results"][task]["chance"]
        if chance is not None:
            axes.plot([place - 0.45, place + 0.45], [chance, chance], color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set(ylabel="score, 95% interval; dotted: guessing", ylim=(0, 1))
    axes.legend(fontsize=8)
    return _png(figure)


def radar(columns: list[Content]) -> bytes | None:
    """One spoke a task, for models that have all of them; None for fewer than three tasks."""
    from matplotlib.figure import Figure

    tasks = _tasks(columns)
    if len(tasks) < 3:
        return None
    angles = [2 * math.pi * place / len(tasks) for place in range(len(tasks))]
    figure = Figure(figsize=(5.5, 5.5))
    axes = figure.add_subplot(projection="polar")
    for one in columns:
        if any(task not in one["results"] for task in tasks):
            continue
        values = [one["results"][task]["value"] for task in tasks]
        axes.plot(angles + angles[:1], values + values[:1], label=one["name"])
        axes.fill(angles, values, alpha=0.15)
    axes.set_xticks(angles, tasks, fontsize=8)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.1, -0.12))
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
