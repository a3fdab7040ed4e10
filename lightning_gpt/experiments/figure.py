"""Curves of an experiment: a line per variant, the mean of its seeds, in a band from the smallest to the largest."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.metrics import unit_of

FIGURE_FILE = "curves.png"
POSITIONS_FILE = "positions.png"
AT_POSITION = re.compile(r"(.+/loss)_at_(\d+)")
"""Metrics of one part of the context: the loss of the tokens that end at a position."""
LOG_RATIO = 8
"""Measured values that span more are drawn on a logarithmic axis."""
Axis = Callable[[dict[str, Any], list[int]], list[float] | None]
"""A cell and steps of its curve -> what had been spent by each; None: not known."""


def _tokens(cell: dict[str, Any], steps: list[int]) -> list[float] | None:
    return [step * cell["tokens"] / cell["steps"] for step in steps] if cell["tokens"] else None


def _flops(cell: dict[str, Any], steps: list[int]) -> list[float] | None:
    return [step * cell["flops_per_step"] for step in steps] if cell["flops_per_step"] else None


def _seconds(cell: dict[str, Any], steps: list[int]) -> list[float] | None:
    at = {point[0]: point[2] for point in cell["points"] if len(point) > 2}
    return [at[step] for step in steps] if all(at.get(step) is not None for step in steps) else None


AXES: dict[str, Axis] = {"tokens": _tokens, "training FLOPs": _flops, "training time (s)": _seconds}
"""What a curve is drawn over: label -> values."""


def draw_curves(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws curves.png, a panel for each of tokens, FLOPs and wall time that is known and tells something new; None
    when no cell logged the curve.

    Args:
        results: content of results.json.
        directory: where the picture goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    by_variant = {
        variant: [cell for cell in results["cells"] if cell["variant"] == variant and cell["points"]]
        for variant in results["variants"]
    }
    by_variant = {variant: cells for variant, cells in by_variant.items() if cells}
    measured = bool(results.get("measure"))
    if not by_variant or (measured and not results["axis"]):
        return None
    axes_shown = _axes_that_differ(by_variant, results["axis"] if measured else "optimizer step")
    figure = Figure(figsize=(3.2 + 3.8 * len(axes_shown), 4.2), layout="constrained")
    panels = figure.subplots(1, len(axes_shown), sharey=True, squeeze=False)[0]
    for panel, (label, axis) in zip(panels, axes_shown.items()):
        for number, (variant, cells) in enumerate(by_variant.items()):
            _line(panel, cells, axis, variant, number, len(by_variant))
        panel.set_xlabel(label)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.grid(alpha=0.3)
        if measured:
            panel.set_xscale("log", base=2)
            values = [point[1] for cells in by_variant.values() for cell in cells for point in cell["points"]]
            if 0 < min(values) * LOG_RATIO < max(values):
                panel.set_yscale("log")
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    unit = unit_of(results["curve"], results).strip()
    panels[0].set_ylabel(f"{results['curve']} ({unit})" if unit else results["curve"])
    if len(by_variant) > 10:
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    else:
        panels[0].legend(fontsize=8)
    return _save(figure, directory / FIGURE_FILE)


def _axes_that_differ(by_variant: dict[str, list[dict[str, Any]]], step: str) -> dict[str, Axis]:
    """Those that are known for all; FLOPs only where variants differ by 2% in them per token (else the picture is that
    over tokens once more); `step`, which names what steps are, where tokens are not known."""
    cells = [cell for cells in by_variant.values() for cell in cells]
    known = {
        label: axis
        for label, axis in AXES.items()
        if all(axis(cell, [point[0] for point in cell["points"]]) is not None for cell in cells)
    }
    if len(known) > 1 and "training FLOPs" in known and "tokens" in known:
        per_token = [cell["flops_per_step"] * cell["steps"] / cell["tokens"] for cell in cells]
        if max(per_token) < 1.02 * min(per_token):
            del known["training FLOPs"]
    return known if "tokens" in known else {step: lambda cell, steps: list(map(float, steps))} | known


def _line(panel, cells: list[dict[str, Any]], axis: Axis, variant: str, number: int, of: int) -> None:
    """One variant's mean and band, over the mean of what its seeds had spent at each step."""
    from matplotlib import colormaps

    steps, seeds = common_points(cells)
    x = [sum(values) / len(values) for values in zip(*(axis(cell, steps) for cell in cells))]
    means = [sum(values) / len(values) for values in zip(*seeds)]
    marker = "o" if len(x) < 12 else None
    color = f"C{number}" if of <= 10 else colormaps["viridis"](number / (of - 1))
    panel.plot(x, means, label=variant, color=color, linewidth=1.3, marker=marker, markersize=3)
    panel.fill_between(x, list(map(min, zip(*seeds))), list(map(max, zip(*seeds))), color=color, alpha=0.2)


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
    series = [{point[0]: point[1] for point in cell["points"]} for cell in cells]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return steps, [[one[step] for step in steps] for one in series]
