"""One metric over another, such as quality over bytes: a point a variant, with the intervals of both."""

from pathlib import Path
from typing import Any

from lightning_gpt.experiments.comparisons import variant_values
from lightning_gpt.experiments.metrics import unit_of
from lightning_gpt.experiments.statistics import estimate

SCATTER_FILE = "scatter.png"
RATIO = 8
"""Values that span more are drawn on a logarithmic axis."""


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
    for number, (variant, (x, y)) in enumerate(points.items()):
        axes.errorbar(x.mean, y.mean, y.half_width or 0, x.half_width or 0, fmt="o", color=f"C{number % 10}", capsize=3)
        axes.annotate(variant, (x.mean, y.mean), textcoords="offset points", xytext=(6, 5), fontsize=8)
    for side, name in enumerate(("x", "y")):
        means = [point[side].mean for point in points.values()]
        if min(means) > 0 and max(means) > RATIO * min(means):
            axes.set(**{f"{name}scale": "log"})
        metric = results["scatter"][side]
        axes.set(**{f"{name}label": f"{metric} ({unit})" if (unit := unit_of(metric, results).strip()) else metric})
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    path = directory / SCATTER_FILE
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path
