"""Curves of an experiment: a line per variant, the mean of its seeds, in a band from the smallest to the largest."""

import re
from pathlib import Path
from typing import Any

FIGURE_FILE = "curves.png"
POSITIONS_FILE = "positions.png"
AT_POSITION = re.compile(r"(.+/loss)_at_(\d+)")
"""Metrics of one part of the context: the loss of the tokens that end at a position."""


def draw_curves(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws curves.png; None when no cell logged the curve.

    Args:
        results: content of results.json.
        directory: where the picture goes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for variant in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == variant and cell["points"]]
        if not cells:
            continue
        x, seeds = common_points(cells)
        scale = cells[0]["flops_per_step"] if results["curve_over"] == "training FLOPs" else 1
        x = [step * scale for step in x]
        means = [sum(values) / len(values) for values in zip(*seeds)]
        marker = "o" if len(x) < 12 else None
        (line,) = axes.plot(x, means, label=variant, linewidth=1.3, marker=marker, markersize=3)
        axes.fill_between(
            x, list(map(min, zip(*seeds))), list(map(max, zip(*seeds))), color=line.get_color(), alpha=0.2
        )
        drawn = True
    if not drawn:
        return None
    unit = {"val/bits_per_byte": "bits per byte"}.get(results["curve"], "nats per token")
    axes.set(xlabel=results["curve_over"], ylabel=f"{results['curve']} ({unit})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, directory / FIGURE_FILE)


def draw_positions(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws positions.png, the loss along the context, trained and beyond; None when it was measured at fewer than two
    places. Arguments as draw_curves."""
    from matplotlib.figure import Figure

    found = {metric: match for metric in results["metrics"] if (match := AT_POSITION.fullmatch(metric))}
    if len(found) < 2:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = [int(match[2]) for match in found.values()]
    for variant in results["variants"]:
        finals = [cell["final"] for cell in results["cells"] if cell["variant"] == variant]
        values = [[final[metric] for final in finals if metric in final] for metric in found]
        if not all(values):
            continue
        means = [sum(one) / len(one) for one in values]
        (line,) = axes.plot(ends, means, label=variant, linewidth=1.3, marker="o", markersize=4)
        axes.fill_between(ends, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2)
    axes.axvline(ends[0], color="gray", linestyle=":", linewidth=1)
    axes.set_xticks(ends)
    axes.set(
        xlabel="last position of the tokens (dotted: end of the training window)",
        ylabel=f"{next(iter(found.values()))[1]} (nats per token)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, directory / POSITIONS_FILE)


def _save(figure, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path


def common_points(cells: list[dict[str, Any]]) -> tuple[list[int], list[list[float]]]:
    """Steps at which every cell has a point, and each cell's values there (a diverged run ends early)."""
    series = [dict(map(tuple, cell["points"])) for cell in cells]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return steps, [[one[step] for step in steps] for one in series]
