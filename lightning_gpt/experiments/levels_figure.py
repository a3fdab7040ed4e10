"""Values over the one number that variants differ in, such as a size: points of the seeds, means with intervals."""

from pathlib import Path
from typing import Any

from lightning_gpt.experiments.comparisons import variant_values
from lightning_gpt.experiments.metrics import unit_of
from lightning_gpt.experiments.statistics import estimate

LEVELS_FILE = "levels.png"
MOST_METRICS = 3
RATIO = 8
"""Levels that span more are drawn on a logarithmic axis."""


def levels_of(results: dict[str, Any]) -> tuple[str, dict[str, float]] | None:
    """The setting that alone tells the variants apart, and its number in each; None: there is no such setting.

    Args:
        results: content of results.json.
    """
    variants: dict[str, dict[str, Any]] = results["variants"]
    keys = {tuple(settings) for settings in variants.values()}
    if len(keys) != 1 or len(only := next(iter(keys))) != 1 or len(variants) < 3:
        return None
    levels = {name: settings[only[0]] for name, settings in variants.items()}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in levels.values())
    return (only[0], levels) if numbers and len(set(levels.values())) == len(levels) else None


def draw_levels(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws levels.png, a panel for each of the first metrics; None where variants do not differ in one number alone.

    Args:
        results: content of results.json.
        directory: where the picture goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    if (found := levels_of(results)) is None:
        return None
    setting, levels = found
    metrics = [
        one for one in results["metrics"][:MOST_METRICS] if any(one in cell["final"] for cell in results["cells"])
    ]
    if not metrics:
        return None
    figure = Figure(figsize=(1 + 4 * len(metrics), 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        xs, means, widths = [], [], []
        for variant, level in sorted(levels.items(), key=lambda one: one[1]):
            if values := list(variant_values(results, variant, metric).values()):
                axes.plot([level] * len(values), values, "o", color="C0", alpha=0.4, markersize=4)
                mean = estimate(values)
                xs, means, widths = [*xs, level], [*means, mean.mean], [*widths, mean.half_width or 0.0]
        axes.errorbar(xs, means, widths, color="C0", linewidth=1.3, capsize=3)
        if min(levels.values()) > 0 and max(levels.values()) > RATIO * min(levels.values()):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(xs, [f"{x:,.6g}" for x in xs], rotation=30 if len(xs) > 5 else 0)
        unit = unit_of(metric, results).strip()
        axes.set(xlabel=setting.replace(".init_args", ""), ylabel=f"{metric} ({unit})" if unit else metric)
        axes.grid(alpha=0.3)
    path = directory / LEVELS_FILE
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path
