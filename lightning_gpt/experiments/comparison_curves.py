"""Curves of compared runs: over any axis, a mean and its band for runs that differ by seed, as a line of characters."""

from dataclasses import dataclass

import numpy as np

from lightning_gpt.experiments.comparison import Comparison, Row

BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass
class Curve:
    """One line of a chart."""

    name: str
    x: np.ndarray
    """(N,)."""
    y: np.ndarray
    """(N,) mean over the row's runs."""
    low: np.ndarray
    """(N,) least of the runs."""
    high: np.ndarray
    """(N,) largest of the runs."""


def curve_of(row: Row, tag: str, axis: str) -> Curve | None:
    """The curve of a metric; None when no run of the row logged it or says how its steps lie on the axis.

    Runs are brought to the places of the one that got least far, by linear interpolation.
    """
    found = []
    for run in row.runs:
        series = run.series.get(tag)
        places = None if series is None else run.axis(axis, series.steps)
        if places is not None:
            finite = np.isfinite(series.values)
            if finite.any():
                found.append((places[finite], series.values[finite]))
    if not found:
        return None
    grid = min((places for places, _ in found), key=lambda places: (places[-1], len(places)))
    grid = grid[grid >= max(places[0] for places, _ in found)]
    if not len(grid):
        return None
    values = np.stack([np.interp(grid, places, one) for places, one in found])
    return Curve(row.name, grid, values.mean(0), values.min(0), values.max(0))


def curves(comparison: Comparison, tag: str, axis: str | None = None) -> list[Curve]:
    """Those of all rows that have one."""
    found = [curve_of(row, tag, axis or comparison.axis) for row in comparison.rows]
    return [curve for curve in found if curve is not None]


def curve_tag(comparison: Comparison, least: int = 4) -> str:
    """What the sparklines show: the first metric with several points, else the training loss, else the first metric."""
    for tag in (*comparison.metrics, "train/loss"):
        lengths = [len(run.series[tag].values) for row in comparison.rows for run in row.runs if tag in run.series]
        if lengths and max(lengths) >= least:
            return tag
    return comparison.metrics[0]


def sparklines(comparison: Comparison, tag: str, width: int = 12) -> dict[str, str]:
    """Row -> its curve in `width` characters, all on one scale; a run that ended early has a shorter line."""
    found = {curve.name: curve for curve in curves(comparison, tag)}
    if not found:
        return {}
    end = max(curve.x[-1] for curve in found.values())
    every = np.concatenate([curve.y for curve in found.values()])
    low, high = float(every.min()), float(np.quantile(every, 0.95))  # the first steps would flatten the rest
    lines = {}
    for name, curve in found.items():
        count = max(1, round(width * curve.x[-1] / end)) if end > 0 else 1
        at = np.interp(np.linspace(curve.x[0], curve.x[-1], count), curve.x, curve.y)
        share = np.clip((at - low) / max(high - low, 1e-12), 0, 1)
        lines[name] = "".join(BLOCKS[round(float(one) * (len(BLOCKS) - 1))] for one in share)
    return lines
