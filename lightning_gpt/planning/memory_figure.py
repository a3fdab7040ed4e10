"""Memory as a picture: one bar for the run, one for each lever, stacked by component."""

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_gpt.planning.memory_levers import Lever
from lightning_gpt.planning.memory_overhead import MemoryPlan
from lightning_gpt.planning.memory_peak import COMPONENTS

SHOWN = 7
"""Levers, at most."""
COLORS = {
    "process": "#c7c7c7",
    "weights": "#1f77b4",
    "gradients": "#ff7f0e",
    "optimizer": "#2ca02c",
    "communication": "#8c564b",
    "batches": "#17becf",
    "activations": "#d62728",
    "recomputed block": "#ff9896",
    "weight copies": "#aec7e8",
    "logits and loss": "#9467bd",
    "working tensors": "#e377c2",
    "key/value cache": "#bcbd22",
    "compiled products": "#9edae5",
    "allocator": "#7f7f7f",
}


def draw_memory(path: Path, plan: MemoryPlan, levers: Sequence[Lever], budget: float | None = None) -> Path:
    """Draws the bars.

    Args:
        path: a PNG.
        plan: the run as it is.
        levers: what would make it smaller, the best first.
        budget: bytes, a line; None = none.
    """
    from matplotlib.figure import Figure

    bars = [("as configured", plan), *((lever.name, lever.plan) for lever in levers[:SHOWN])]
    unit, name = (1 << 30, "GiB") if plan.total >= 1 << 30 else (1 << 20, "MiB")
    figure = Figure(figsize=(9.5, 1.6 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for component in ("process", *COMPONENTS, "compiled products", "allocator"):
        widths = [one.parts().get(component, 0) / unit for _, one in bars]
        if max(widths) * unit < 0.004 * plan.total:
            continue
        color = COLORS[component]
        axes.barh(range(len(bars)), widths, left=left, color=color, label=component, edgecolor="white", linewidth=0.4)
        left = [start + width for start, width in zip(left, widths)]
    for row, (_, one) in enumerate(bars):
        axes.text(one.total / unit, row, f" {one.total / unit:.3g}", va="center", fontsize=8.5)
    if budget is not None and budget <= 4 * plan.total:
        axes.axvline(budget / unit, color="black", linestyle="--", linewidth=1, label="budget")
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(plan.total, budget if budget is not None and budget <= 4 * plan.total else 0) / unit)
    job = plan.job
    where = "of each device" if job.devices > 1 else "of the process" if job.device == "cpu" else "of the GPU"
    axes.set_xlabel(f"{name} {where} at the peak")
    title = f"{job.batch_size} x {job.block_size} tokens, {job.precision}, {type(job.optimizer).__name__}, {job.device}"
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left", borderaxespad=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path
