"""The frontier as a picture: where published models lie, and the plan among them."""

import os
from pathlib import Path

import numpy as np

from lightning_gpt.planning.kaplan import KAPLAN
from lightning_gpt.planning.laws import APPROACH_1, BESIROGLU, HOFFMANN, ParametricLaw
from lightning_gpt.planning.published import PUBLISHED, judge
from lightning_gpt.planning.scaling_plan import ScalingPlan

COLORS = {"under-trained": "tab:red", "about optimal": "tab:green", "over-trained": "tab:blue"}
LABELS = {
    "GPT-3 175B": ((-6, 0), (-7, -3)),
    "Gopher 280B": ((-6, 0), None),
    "MT-NLG 530B": ((-6, 3), (6, -3)),
    "PaLM 540B": ((6, 2), (6, 7)),
    "Chinchilla 70B": ((-6, 3), (-7, -10)),
    "LLaMA 7B": ((-6, -3), (-7, -3)),
    "LLaMA 65B": ((-6, -9), None),
    "LLaMA 2 7B": ((6, -9), (6, 2)),
    "LLaMA 2 70B": ((6, -9), None),
    "LLaMA 3 8B": ((6, -3), (6, 4)),
    "LLaMA 3 70B": ((6, -3), (6, 3)),
    "LLaMA 3.1 405B": ((6, -8), (4, 6)),
    "SmolLM2 1.7B": ((6, -3), (6, 2)),
}
"""Models that get their name, and where it stands from the point in each panel: the others' would lie over these."""


def draw_frontier(path: Path, law: ParametricLaw = BESIROGLU, plan: ScalingPlan | None = None) -> Path:
    """Draws two panels over training FLOPs: parameters, and loss.

    Args:
        path: a PNG.
        law: judges the models; its frontier is the solid line.
        plan: marked by a star; None = only the models.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    judged = [(model, judge(law, model.parameters, model.tokens)) for model in PUBLISHED]
    spots = [one.flops for _, one in judged] + ([plan.training_flops] if plan else [])
    flops = np.geomspace(min(spots) / 10, max(spots) * 10, 200)
    lines = {law.name: (law, "black", "-")}
    for other, color, style in (
        (HOFFMANN, "tab:purple", "--"),
        (APPROACH_1, "gray", "-."),
        (KAPLAN, "tab:orange", ":"),
    ):
        lines.setdefault(other.name, (other, color, style))
    for name, (one, color, style) in lines.items():
        sizes = [one.optimum(c)[0] for c in flops]
        note = ", without embeddings" if one.counts == "body" else ""
        left.plot(flops, sizes, color=color, linestyle=style, linewidth=1.2, label=f"best size, {name}{note}")
        if isinstance(one, ParametricLaw):
            losses = [one.frontier_loss(c) for c in flops]
            right.plot(flops, losses, color=color, linestyle=style, linewidth=1.2, label=f"least loss, {name}")
    for model, one in judged:
        places = LABELS.get(model.name, (None, None))
        for axes, value, place in ((left, one.parameters, places[0]), (right, one.loss, places[1])):
            axes.scatter(one.flops, value, s=24, color=COLORS[one.verdict], zorder=3)
            if place:
                side = {"ha": "right" if place[0] < 0 else "left", "fontsize": 7.5, "textcoords": "offset points"}
                axes.annotate(model.name, (one.flops, value), xytext=place, **side)
    if plan is not None:
        for axes, value in ((left, plan.parameters), (right, plan.loss()[0])):
            axes.scatter(plan.training_flops, value, s=160, marker="*", color="gold", edgecolor="black", zorder=4)
    left.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters", title="Size")
    right.set(xscale="log", xlabel="training FLOPs", ylabel="nats a token", title=f"Loss that {law.name} predicts")
    extra = [Line2D([], [], marker="o", linestyle="", color=color, label=name) for name, color in COLORS.items()]
    if plan is not None:
        extra.append(
            Line2D([], [], marker="*", markersize=11, linestyle="", color="gold", markeredgecolor="black", label="plan")
        )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(handles=[*axes.get_legend_handles_labels()[0], *extra], fontsize=7.5)
    return save_figure(figure, path)


def save_figure(figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)
    return path
