"""The picture of a learning-rate range test."""

from pathlib import Path

from lightning_gpt.optim.rate_range import RangeTest

FIGURE_FILE = "lr_range.png"


def draw_range(test: RangeTest, path: Path, title: str = "") -> None:
    """Loss over the rate, with what is read off it.

    Args:
        test: a sweep.
        path: PNG.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    count = len(test.losses)
    axes.plot(test.rates[:count], test.losses, color="C0", alpha=0.35, linewidth=1, label="loss of a step")
    axes.plot(test.rates[:count], test.smooth, color="C0", linewidth=1.8, label="centred moving average")
    marks = (
        (test.steepest, "C2", "-", f"suggested: {test.steepest:.2g}, the steepest fall"),
        (test.lowest, "C1", "--", f"at most: {test.lowest:.2g}, the lowest loss"),
        (test.diverged, "C3", ":", f"diverged at {test.diverged or 0:.2g}"),
    )
    for rate, color, style, label in marks:
        if rate is not None:
            axes.axvline(rate, color=color, linestyle=style, linewidth=1.3, label=label)
    # The explosion at the end would flatten all else.
    low, high = min(test.losses), max(test.losses[: max(3, count // 5)])
    axes.set_ylim(low - 0.05 * (high - low), high + 0.6 * (high - low))
    axes.set_xscale("log")
    axes.set(xlabel="learning rate (first parameter group)", ylabel="train/loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
