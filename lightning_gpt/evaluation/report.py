"""One page per model: table, bars with standard errors, radar; everything inside one HTML file."""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}"
    "code{background:#f4f4f4;padding:.1rem .3rem}"
)


def shown(row: dict[str, Any]) -> str:
    """0.312 ± 0.021."""
    return f"{row['value']:.3f}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.3f}")


def bars(models: dict[str, dict[str, dict[str, Any]]]) -> bytes:
    """PNG: every task of every model with its standard error, guessing as a line."""
    from matplotlib.figure import Figure

    tasks = [t for t, row in next(iter(models.values())).items() if row["metric"] != "bits per byte"]
    figure = Figure(figsize=(max(6, 0.9 * len(tasks) + 2), 4))
    axes = figure.subplots()
    width = 0.8 / len(models)
    for number, (name, results) in enumerate(models.items()):
        places = [i + (number - (len(models) - 1) / 2) * width for i in range(len(tasks))]
        rows = [results.get(task) for task in tasks]
        heights = [row["value"] if row else 0.0 for row in rows]
        errors = [1.96 * row["stderr"] if row and row["stderr"] else 0.0 for row in rows]
        axes.bar(places, heights, width, yerr=errors, capsize=2, label=name)
    for i, task in enumerate(tasks):
        chance = next(iter(models.values()))[task]["chance"]
        if chance is not None:
            axes.plot([i - 0.45, i + 0.45], [chance, chance], color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set(ylabel="score, ± 1.96 standard errors; dotted: guessing", ylim=(0, 1))
    axes.legend(fontsize=8)
    return _png(figure)


def radar(models: dict[str, dict[str, dict[str, Any]]]) -> bytes | None:
    """PNG: one spoke a task; None for fewer than three."""
    import math

    from matplotlib.figure import Figure

    tasks = [t for t, row in next(iter(models.values())).items() if row["metric"] != "bits per byte"]
    if len(tasks) < 3:
        return None
    angles = [2 * math.pi * i / len(tasks) for i in range(len(tasks))]
    figure = Figure(figsize=(5, 5))
    axes = figure.add_subplot(projection="polar")
    for name, results in models.items():
        values = [results[task]["value"] if task in results else 0.0 for task in tasks]
        axes.plot(angles + angles[:1], values + values[:1], label=name)
        axes.fill(angles, values, alpha=0.15)
    axes.set_xticks(angles, tasks, fontsize=8)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, loc="lower right")
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def write_report(directory: Path, name: str, content: dict[str, Any], others: dict[str, dict[str, Any]]) -> None:
    """report.html.

    Args:
        directory: where.
        name: of the model.
        content: what results.json holds: command, model, versions, results.
        others: further models' results by name, shown beside it.
    """
    models = {name: content["results"], **{other: one["results"] for other, one in others.items()}}
    head = "".join(f"<th>{html.escape(model)}</th>" for model in models)
    rows = []
    for task, row in content["results"].items():
        cells = "".join(
            f"<td class=n>{shown(results[task]) if task in results else ''}</td>" for results in models.values()
        )
        chance = "" if row["chance"] is None else f"{row['chance']:.2f}"
        further = [f"{key} {value:.3f}" for key, value in row.items() if key in FURTHER and isinstance(value, float)]
        about = html.escape(row["about"] + (f" ({', '.join(further)})" if further else ""))
        rows.append(
            f"<tr><td>{task}</td><td>{row['metric']}</td>{cells}<td class=n>{chance}</td>"
            f"<td class=n>{row['n']:,} of {row['of']:,}</td><td>{about}</td></tr>"
        )
    pictures = [picture for picture in (bars(models), radar(models)) if picture is not None]
    images = "".join(f'<p><img src="data:image/png;base64,{base64.b64encode(p).decode()}"></p>' for p in pictures)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in content.get("notes", []))
    facts = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td><code>{html.escape(str(value))}</code></td></tr>"
        for key, value in content["about"].items()
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(name)}</h1><p><code>{html.escape(content['command'])}</code></p>{notes}"
        f"<table><tr><th>task</th><th>metric</th>{head}<th>guessing</th><th>n</th><th>what it asks</th></tr>"
        f"{''.join(rows)}</table>{images}<h2>How it was run</h2><table>{facts}</table></html>\n"
    )
    temporary = directory / f".report.html.{os.getpid()}.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, directory / "report.html")


FURTHER = {"acc", "subject_mean", "biased_when_wrong", "in_form"}
"""Numbers beside the main one that the table mentions."""
