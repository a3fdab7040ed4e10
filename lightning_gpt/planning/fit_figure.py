"""fit.png: loss over size, iso-FLOP profiles, the frontier, and predicted against measured."""

from pathlib import Path

import numpy as np

from lightning_gpt.planning.published import short
from lightning_gpt.planning.scaling_figure import save_figure
from lightning_gpt.planning.scaling_fit import ScalingFit

STEPS = 200


def draw_fit(fit: ScalingFit, path: Path) -> Path:
    """Draws four panels.

    Args:
        fit: the fit.
        path: a PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(12, 9.5), layout="constrained")
    panels = figure.subplots(2, 2)
    _sizes(fit, panels[0][0])
    _profiles(fit, panels[0][1])
    _frontier(fit, panels[1][0])
    _outcome(fit, panels[1][1])
    for axes in panels.flat:
        axes.xaxis.set_minor_formatter(NullFormatter())  # a range below a decade is written full otherwise
        axes.grid(alpha=0.3, which="both")
    return save_figure(figure, path)


def _colors(values: np.ndarray) -> dict[float, tuple]:
    """A colour for each of some levels, in order."""
    from matplotlib import colormaps

    levels = sorted({float(f"{value:.2g}") for value in values})
    return {level: colormaps["viridis"](0.9 * i / max(1, len(levels) - 1)) for i, level in enumerate(levels)}


def _sizes(fit: ScalingFit, axes) -> None:
    """Loss over N, a curve and its points for each D."""
    runs = [*fit.runs, *fit.held]
    sizes, tokens = fit.sizes(runs), np.array([run.tokens for run in runs])
    grid = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, STEPS)
    for level, color in _colors(tokens).items():
        own = [i for i, value in enumerate(tokens) if float(f"{value:.2g}") == level]
        axes.plot(grid, fit.law.loss(grid, tokens[own].mean()), color=color, label=f"{short(level)} tokens")
        for i in own:
            held = runs[i] in fit.held
            axes.scatter(sizes[i], runs[i].loss, s=28, color=color, marker="D" if held else "o", zorder=3)
    what = "all" if fit.law.counts == "all" else "without embeddings"
    axes.set(
        xscale="log",
        xlabel=f"parameters ({what})",
        ylabel="nats a token",
        title="Loss and fitted law (diamond: held out)",
    )
    axes.legend(fontsize=8)


def _profiles(fit: ScalingFit, axes) -> None:
    """Parabolas of each budget, their minima, and the law's iso-FLOP curves."""
    if fit.isoflop is None:
        axes.text(0.5, 0.5, "no budget has three sizes", ha="center", transform=axes.transAxes)
        axes.set(title="Iso-FLOP profiles", xticks=[], yticks=[])
        return
    profiles = fit.isoflop.profiles
    for one, color in zip(profiles, _colors(np.arange(1, len(profiles) + 1)).values()):
        grid = np.geomspace(min(one.sizes) / 1.15, max(one.sizes) * 1.15, STEPS)
        axes.scatter(one.sizes, one.losses, s=22, color=color, zorder=3)
        axes.plot(grid, one.loss(grid), color=color, label=f"{one.flops:.2g} FLOPs")
        axes.plot(grid, fit.law.loss(grid, fit.law.cost.tokens(one.flops, grid)), color=color, linestyle=":")
        if one.inside:
            axes.scatter(one.best_size, one.loss(one.best_size), s=130, marker="*", color=color, edgecolor="black")
    how = "read between runs" if profiles[0].interpolated else "measured"
    title = f"Iso-FLOP ({how}; dotted: law, star: minimum)"
    axes.set(xscale="log", xlabel="parameters", ylabel="nats a token", title=title)
    axes.legend(fontsize=8)


def _frontier(fit: ScalingFit, axes) -> None:
    """Loss over compute, a line for each size, and the best split with its band."""
    runs = [*fit.runs, *fit.held]
    sizes, flops = fit.sizes(runs), fit.flops(runs)
    for level, color in _colors(sizes).items():
        own = sorted((i for i, value in enumerate(sizes) if float(f"{value:.2g}") == level), key=lambda i: flops[i])
        losses = [runs[i].loss for i in own]
        axes.plot(flops[own], losses, color=color, marker="o", markersize=4, linewidth=0.8, label=short(level))
    grid = np.geomspace(flops.min(), flops.max() * 3, STEPS)
    band = np.percentile([[one.frontier_loss(c) for c in grid] for one in fit.samples], (2.5, 97.5), axis=0)
    axes.plot(grid, [fit.law.frontier_loss(c) for c in grid], color="tab:red", linewidth=1.8, label="best split")
    axes.fill_between(grid, *band, color="tab:red", alpha=0.2)
    title = f"Frontier: N_opt ~ C^{fit.law.a:.2f}, D_opt ~ C^{fit.law.b:.2f}; band: 95%"
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="nats a token", title=title)
    axes.legend(fontsize=8, title="parameters", title_fontsize=8)


def _outcome(fit: ScalingFit, axes) -> None:
    """Measured over predicted."""
    runs = np.array([run.loss for run in fit.runs])
    fitted = fit.law.loss(fit.sizes(), np.array([run.tokens for run in fit.runs]))
    axes.scatter(fitted, runs, s=24, color="tab:blue", label="fitted", zorder=3)
    ends = [min(fitted.min(), runs.min()), max(fitted.max(), runs.max())]
    for number, one in enumerate(one for one in fit.predictions if one.measured is not None):
        reach = [[one.loss - one.low], [one.high - one.loss]]
        axes.errorbar(
            one.loss,
            one.measured,
            xerr=reach,
            fmt="D",
            color="tab:red",
            capsize=3,
            label=None if number else "held out, 95% interval",
        )
        ends = [min(ends[0], one.measured, one.low), max(ends[1], one.measured, one.high)]
    axes.plot(ends, ends, color="gray", linewidth=1)
    axes.set(xlabel="predicted, nats a token", ylabel="measured, nats a token", title="Predicted and measured")
    axes.legend(fontsize=8)
