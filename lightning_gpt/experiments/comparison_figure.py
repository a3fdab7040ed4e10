"""Curves of compared runs laid over another: one chart a metric."""

import io
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.comparison import AXES, Comparison
from lightning_gpt.experiments.comparison_curves import Curve, curves
from lightning_gpt.experiments.metrics import loss_unit, unit_of

MOST_CHARTS = 6
MOST_NAMES = 24
"""In a legend."""
MARKED = 15
"""Curves of fewer points get a mark at each."""


def draw(comparison: Comparison) -> tuple[Any, list[tuple[str, Any, list[Curve]]]]:
    """A matplotlib figure, and for each of its charts the metric, the axes and the curves.

    Raises:
        ValueError: no metric has a curve.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    charts = [(tag, found) for tag in comparison.metrics[:MOST_CHARTS] if (found := curves(comparison, tag))]
    if not charts:
        raise ValueError(f"no run has a curve of {', '.join(comparison.metrics)} over {AXES[comparison.axis]}")
    columns = min(len(charts), 2)
    lines = -(-len(charts) // columns)
    names = [row.name for row in comparison.rows]
    width = 1 + 6 * columns
    # About five points a character of the legend.
    legend_columns = max(1, min(4, int(width * 72 / (5 * max(map(len, names)) + 40))))
    legend_rows = -(-len(names) // legend_columns) if len(names) <= MOST_NAMES else 1
    figure = Figure(figsize=(width, 3.8 * lines + 0.2 * legend_rows), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    palette = colormaps["tab10"] if len(names) <= 10 else colormaps["tab20"] if len(names) <= 20 else None
    colours = {name: palette(i) if palette else colormaps["viridis"](i / len(names)) for i, name in enumerate(names)}
    drawn, handles = [], {}
    for axes, (tag, found) in zip(grid, charts):
        for curve in found:
            mark = "o" if len(curve.x) < MARKED else None
            (line,) = axes.plot(
                curve.x, curve.y, color=colours[curve.name], linewidth=1.3, marker=mark, markersize=3, label=curve.name
            )
            handles.setdefault(curve.name, line)
            if (curve.high > curve.low).any():
                axes.fill_between(curve.x, curve.low, curve.high, color=colours[curve.name], alpha=0.2, linewidth=0)
        axes.set(xlabel=AXES[comparison.axis], ylabel=f"{tag}{_unit(tag, comparison)}")
        _frame(axes, found)
        axes.grid(alpha=0.3)
        drawn.append((tag, axes, found))
    for axes in grid[len(charts) :]:
        axes.set_visible(False)
    shown = [name for name in names if name in handles]
    if len(names) <= MOST_NAMES:
        lines_shown = [handles[name] for name in shown]
        figure.legend(lines_shown, shown, loc="outside lower center", ncols=legend_columns, fontsize=8, frameon=False)
    else:
        figure.supxlabel(f"{len(shown)} curves, from dark to light in the order of the table", fontsize=9)
    return figure, drawn


def _unit(tag: str, comparison: Comparison) -> str:
    """In brackets; none where runs measure their losses differently. Those of others are taken for language models'."""
    settings = [run.settings for row in comparison.rows for run in row.runs]
    units = {loss_unit(one.get("model"), "model" not in one or "data.data_dir" in one) for one in settings}
    unit = unit_of(tag, {"loss_unit": units.pop() if len(units) == 1 else ""})
    return f" ({unit.strip()})" if unit else ""


def _frame(axes: Any, found: list[Curve]) -> None:
    """Cuts off the first steps of falling curves: they are far above the rest, where runs part."""
    import numpy as np

    every = np.concatenate([curve.y for curve in found])
    low, high = min(curve.low.min() for curve in found), max(curve.high.max() for curve in found)
    inner = float(np.quantile(every, 0.95))
    if len(every) > 40 and high - low > 2 * (inner - low) > 0:
        margin = 0.05 * (inner - low)
        axes.set_ylim(low - margin, inner + 8 * margin)


def save_png(comparison: Comparison, path: Path) -> None:
    """Writes the picture, whole or not at all."""
    figure, _ = draw(comparison)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def svg(comparison: Comparison) -> tuple[str, list[dict[str, Any]]]:
    """The picture as text, and where its charts and values are, for a page to show the value under the pointer.

    Returns:
        SVG; for each chart its metric, its frame in the picture's units (left, top, width, height from the top left
        corner), the range of each axis and the curves.
    """
    from matplotlib import rc_context

    figure, drawn = draw(comparison)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning_gpt"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    width, height = (72 * side for side in figure.get_size_inches())
    charts = []
    for tag, axes, found in drawn:
        box = axes.get_position()
        charts.append(
            {
                "metric": tag,
                "frame": [box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height],
                "x": list(map(float, axes.get_xlim())),
                "y": list(map(float, axes.get_ylim())),
                "curves": [{"name": one.name, "x": _thinned(one.x), "y": _thinned(one.y)} for one in found],
            }
        )
    return text[text.index("<svg") :], charts


def _thinned(values: Any, most: int = 500) -> list[float]:
    """At most about `most` of the values, the last among them: a page has to be opened."""
    step = max(1, len(values) // most)
    kept = [float(f"{value:.6g}") for value in values[::-1][::step][::-1]]
    return kept
