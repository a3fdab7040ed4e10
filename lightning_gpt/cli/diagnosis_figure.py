"""A picture of what a diagnosis is made from: a column a run, a row a kind of signal, findings shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_gpt.callbacks.diagnosis_report import Finding, Report
    from lightning_gpt.callbacks.diagnosis_signals import Signals

COLUMNS = 5
"""Runs that one picture has room for."""
ROWS: dict[str, tuple[dict[str, str], bool]] = {
    "loss (nats per token)": ({"loss": "training", "val_loss": "validation"}, False),
    "gradient norm": ({"gradient_norm": "of the step", "gradient_norm_max": "largest since the last log"}, True),
    "ratio": ({"update_ratio": "update / weights", "gradient_depth": "first / last block's gradient"}, True),
    "share": (
        {"dead_units_worst": "dead units, worst layer", "data_wait": "waiting for data", "clipped": "clipped steps"},
        False,
    ),
}
"""Label -> signals with their names, and whether the axis is logarithmic."""


def draw_diagnosis(judged: Sequence[tuple[Path, Signals, Report]], path: Path) -> Path:
    """Draws the runs, those with findings first, at most COLUMNS of them (see columns).

    Args:
        judged: directory, signals and report of each run.
        path: of the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from lightning_gpt.experiments.run_finder import short_names

    shown = columns(judged)
    rows = {
        label: row
        for label, row in ROWS.items()
        if any(len(signals[name]) for _, signals, _ in shown for name in row[0])
    }
    figure = Figure(figsize=(1.2 + 4.2 * len(shown), 0.9 + 2.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(shown), squeeze=False, sharex="col")
    names = short_names([directory for directory, _, _ in shown])
    for column, (name, (_, signals, report)) in enumerate(zip(names, shown)):
        found = "\n".join(one.rule for one in report.findings) or "healthy"
        grid[0][column].set_title(f"{name}\n{found}", fontsize=9, color="firebrick" if report.findings else "black")
        for row, (label, (parts, logarithmic)) in enumerate(rows.items()):
            axes = grid[row][column]
            _draw(axes, signals, parts, logarithmic)
            _mark(axes, signals, [one for one in report.findings if one.signal in parts])
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
        grid[-1][column].set_xlabel("optimizer step")
        grid[-1][column].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path


def columns(judged: Sequence[tuple[Path, Signals, Report]]) -> list[tuple[Path, Signals, Report]]:
    """The runs that are drawn. Of too many the last stay: versions of one name come in the order of their training, and
    who has just trained the ninth wants to see that one."""
    healthy = [one for one in judged if not one[2].findings]
    found = [one for one in judged if one[2].findings][-COLUMNS:]
    return found + healthy[max(len(healthy) - (COLUMNS - len(found)), 0) :]


def _draw(axes: Axes, signals: Signals, parts: dict[str, str], logarithmic: bool) -> None:
    drawn = False
    for name, label in parts.items():
        series = signals[name]
        if len(series):
            marker = "o" if len(series) < 12 else None
            axes.plot(series.steps, series.values, label=label, linewidth=1.2, marker=marker, markersize=3)
            drawn = True
    if not drawn:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="gray")
        return
    if "loss" in parts:
        levels = (("ln V", signals.uniform, ":"), ("token frequencies", signals.facts.unigram, "--"))
        for label, level, style in levels:
            if level is not None:
                axes.axhline(level, color="gray", linestyle=style, linewidth=1, label=label)
    if "gradient_norm" in parts and signals.facts.clip:
        axes.axhline(signals.facts.clip, color="gray", linestyle="--", linewidth=1, label="clipped to")
    if logarithmic:
        axes.set_yscale("log")
    if "data_wait" in parts:
        axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=7, loc="best", framealpha=0.7)


def _mark(axes: Axes, signals: Signals, findings: list[Finding]) -> None:
    """Shades the part of the run in which they are seen, and names them."""
    for number, one in enumerate(findings):
        axes.axvspan(one.since, max(signals.last_step, one.since + 1), color="firebrick", alpha=0.08, linewidth=0)
        axes.text(
            0.02, 0.04 + 0.09 * number, one.rule, transform=axes.transAxes, fontsize=8, color="firebrick", va="bottom"
        )
