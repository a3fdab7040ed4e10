"""One metric over another, such as quality over bytes: a point a variant, with the intervals of both."""

from pathlib import Path
from typing import Any

from lightning_gpt.experiments.comparisons import variant_values
from lightning_gpt.experiments.metrics import unit_of
from lightning_gpt.experiments.statistics import estimate

SCATTER_FILE = "scatter.png"
RATIO = 8
"""Values that span more are drawn on a logarithmic axis."""
LETTER, LINE = 6, 15
"""Pixels that a letter of a name takes, and a line."""


def draw_scatter(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws scatter.png; None where the experiment asks for none, or nothing was measured.

    Args:
        results: content of results.json.
        directory: where the picture goes.
    """
    if not results.get("scatter"):
        return None
    from matplotlib.figure import Figure

    points = {}
    for variant in results["variants"]:
        found = [list(variant_values(results, variant, metric).values()) for metric in results["scatter"]]
        if all(found):
            points[variant] = [estimate(values) for values in found]
    if not points:
        return None
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (x, y) in enumerate(points.values()):
        axes.errorbar(x.mean, y.mean, y.half_width or 0, x.half_width or 0, fmt="o", color=f"C{number % 10}", capsize=3)
    for side, name in enumerate(("x", "y")):
        means = [point[side].mean for point in points.values()]
        if min(means) > 0 and max(means) > RATIO * min(means):
            axes.set(**{f"{name}scale": "log"})
        metric = results["scatter"][side]
        axes.set(**{f"{name}label": f"{metric} ({unit})" if (unit := unit_of(metric, results).strip()) else metric})
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    _name(axes, {variant: (x.mean, y.mean) for variant, (x, y) in points.items()})
    path = directory / SCATTER_FILE
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path


def _name(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Writes each variant beside its point, one above the other where points lie together."""
    axes.figure.draw_without_rendering()  # only now the layout knows where points are
    pixels = {variant: axes.transData.transform(point) for variant, point in points.items()}
    placed: list[tuple[float, float, float]] = []
    for variant in sorted(points, key=lambda one: pixels[one][1]):
        left, y = pixels[variant]
        right, height = left + LETTER * len(variant), y
        for other_left, other_right, other_height in placed:
            if left < other_right and other_left < right and abs(height - other_height) < LINE:
                height = other_height + LINE
        placed.append((left, right, height))
        up = (height - y) * 72 / axes.figure.dpi
        axes.annotate(variant, points[variant], textcoords="offset points", xytext=(6, 5 + up), fontsize=8)
