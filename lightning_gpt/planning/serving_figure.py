"""Plans of a service as a picture: replicas by the hour, and what a month costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_gpt.planning.serving_plan import Demand, ServingPlan


def draw_serving(path: Path, plans: Sequence[ServingPlan], demand: Demand) -> Path:
    """Draws two panels, or one where prices are unknown.

    Args:
        path: a PNG.
        plans: a line and a pair of bars for each.
        demand: of all of them.
    """
    from matplotlib.figure import Figure

    priced = [plan for plan in plans if plan.fixed_dollars is not None and plan.scaled_dollars is not None]
    figure = Figure(figsize=(12 if priced else 7, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if priced else 1, squeeze=False)[0]
    hours = panels[0]
    for number, plan in enumerate(plans):
        counts = [hour.replicas.total for hour in plan.hours]
        hours.stairs(counts, range(25), label=plan.name, color=f"C{number}", linewidth=2)
        hours.axhline(plan.peak.replicas.total, color=f"C{number}", linestyle=":", linewidth=1)
    hours.set_xlim(0, 24)
    hours.set_ylim(bottom=0)
    hours.set_xticks(range(0, 25, 4))
    hours.set_xlabel("hour of the day")
    hours.set_ylabel("replicas (dotted: fixed at the peak)")
    load = hours.twinx()
    load.stairs([demand.rate * share for share in demand.day], range(25), fill=True, color="#999999", alpha=0.25)
    load.set_ylim(bottom=0)
    load.set_ylabel("requests/s (grey)")
    hours.set_zorder(load.get_zorder() + 1)
    hours.patch.set_visible(False)
    hours.legend(fontsize=8, loc="lower right")
    if priced:
        cost, rows = panels[1], range(len(priced))
        bars = (
            ("fixed at the peak", -0.2, [plan.month(plan.fixed_dollars) for plan in priced], "#c7c7c7"),
            ("following the load", 0.2, [plan.month(plan.scaled_dollars) for plan in priced], "#1f77b4"),
        )
        for label, shift, dollars, color in bars:
            drawn = cost.barh([row + shift for row in rows], dollars, 0.38, label=label, color=color)
            cost.bar_label(drawn, fmt="{:,.0f}", fontsize=8, padding=2)
        cost.set_yticks(rows, [plan.name for plan in priced])
        cost.invert_yaxis()
        cost.margins(x=0.15)
        cost.set_xlabel("US dollars a month")
        cost.legend(fontsize=8)
    objective = f"P99 {1e3 * demand.slo_s:g} ms, {100 * demand.availability:g}% available"
    figure.suptitle(f"{demand.rate:,.10g} requests/s at the peak, {objective}", fontsize=10)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)
    return path
