"""Proposals as a picture: where the time of a step goes, what a device holds, and how speed grows with devices."""

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.parallel_layout import Cluster
from lightning_gpt.planning.parallel_plan import Proposal, strong_scaling, weak_scaling

PARTS = (("compute", "#1f77b4"), ("exposed", "#d62728"), ("waiting", "#ff9896"), ("optimizer", "#2ca02c"))
NAMES = {"exposed": "communication", "waiting": "waiting for the slowest"}
FARTHEST = 4096
"""Devices on the right."""


def device_counts(cluster: Cluster) -> list[int]:
    """Powers of two up to a node, then whole nodes, to FARTHEST or 8 times what there is."""
    limit = max(FARTHEST, 8 * cluster.devices)
    counts = [1 << k for k in range(12) if 1 << k < cluster.per_node]
    while (last := counts[-1] * 2 if counts and counts[-1] >= cluster.per_node else cluster.per_node) <= limit:
        counts.append(last)
    return counts


def draw_parallel(path: Path, base: TrainingJob, cluster: Cluster, proposals: Sequence[Proposal]) -> Path:
    """Draws three panels.

    Args:
        path: a PNG.
        base, cluster, proposals: of propose().
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.8 + 0.42 * max(len(proposals), 5)), layout="constrained")
    times, memory, scaling = figure.subplots(1, 3, width_ratios=(1.2, 0.8, 1))
    rows, left = range(len(proposals)), [0.0] * len(proposals)
    for part, color in PARTS:
        widths = [getattr(one.step, part) for one in proposals]
        times.barh(rows, widths, left=left, color=color, label=NAMES.get(part, part))
        left = [a + b for a, b in zip(left, widths)]
    for row, one in zip(rows, proposals):
        speed = f" {one.tokens_per_second:,.0f} tokens/s" if one.fits else " does not fit"
        times.text(one.step.total, row, speed, va="center", fontsize=8)
    times.set_yticks(rows, [one.layout.title for one in proposals])
    times.set_xlim(0, 1.35 * max(one.step.total for one in proposals))
    times.invert_yaxis()
    times.set_xlabel("seconds of an optimizer step")
    times.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    colors = ["#1f77b4" if one.fits else "#c7c7c7" for one in proposals]
    memory.barh(rows, [one.memory.total / 1e9 for one in proposals], color=colors)
    budget = proposals[0].budget / 1e9
    memory.axvline(budget, color="black", linestyle="--", linewidth=1)
    memory.set_xlim(0, min(2.5 * budget, 1.2 * max(budget, *(one.memory.total / 1e9 for one in proposals))))
    for row, one in zip(rows, proposals):
        if one.memory.total / 1e9 > 2.5 * budget:
            memory.text(2.45 * budget, row, f"{one.memory.total / 1e9:.3g}", va="center", ha="right", fontsize=8)
    memory.set_yticks(rows, [])
    memory.invert_yaxis()
    memory.set_xlabel("GB of a device (dashed: what it has)")
    counts = device_counts(cluster)
    for one in proposals:
        points = weak_scaling(base, one.layout, cluster, counts)
        if one.fits and one.layout.strategy != "tp" and len(points) > 1:
            xs, ys = [point.devices for point in points], [point.efficiency for point in points]
            (line,) = scaling.plot(xs, ys, marker="o", markersize=3, label=one.layout.title)
            strong = strong_scaling(base, one.layout, cluster, counts)
            xs, ys = [point.devices for point in strong], [point.efficiency for point in strong]
            scaling.plot(xs, ys, linestyle=":", color=line.get_color())
    scaling.axvline(cluster.devices, color="black", linewidth=0.6)
    scaling.set_xscale("log", base=2)
    scaling.set_ylim(0, 1.02)
    scaling.set_xlabel("devices (line: work grows along, dotted: it stays)")
    scaling.set_ylabel("efficiency")
    scaling.grid(alpha=0.3)
    if scaling.get_legend_handles_labels()[0]:
        scaling.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path
