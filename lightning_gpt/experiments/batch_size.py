"""Which micro-batches fit in memory, how fast each is, and which to train with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NEAR = 0.05
"""Within this share of the best speed, a smaller batch is as good: it leaves memory and more steps a token."""
MARGIN = 0.95
"""Of the memory limit, that a foretold need may fill."""
FIGURE_FILE = "batch_size.png"


@dataclass(frozen=True)
class Measured:
    """One micro-batch that fits."""

    size: int
    """Windows."""
    tokens_per_second: float
    """Of whole optimizer steps, one micro-batch each; the median."""
    seconds: float
    """Of such a step."""
    peak_bytes: int
    """Of the GPU where there is one, else resident memory of the process, Python and libraries included."""


@dataclass(frozen=True)
class Sizes:
    """What was found."""

    measured: list[Measured]
    """By size."""
    largest: int
    """The largest that fits; where `foretold`, by the growth of the memory, not tried."""
    foretold: bool
    end: str
    """Why no larger one was tried."""


Measure = Callable[[int], Measured | None]
"""A size -> what it costs; None: it does not fit."""


def find_sizes(measure: Measure, limit: int | None, most: int = 4096, slowest: float = 10.0) -> Sizes:
    """Doubles the micro-batch until it does not fit, then halves the gap; a size whose foretold need is over the limit
    is not tried.

    Args:
        measure: tries one size.
        limit: bytes; None: it is found out by trying.
        most: windows, that are tried at most.
        slowest: seconds of a step, beyond which no larger one is tried.

    Raises:
        ValueError: a single window does not fit.
    """
    found: list[Measured] = []
    size, too_large, end, foretold = 1, None, "", False
    while not end and too_large is None:
        one = measure(size)
        if one is None:
            too_large, end = size, f"{size} windows do not fit"
            break
        found.append(one)
        needed = _foretold(found, 2 * size)
        if limit and needed and needed > MARGIN * limit:
            too_large, end = 2 * size, f"{2 * size} windows would need {needed / 2**30:.2f} GiB"
        elif one.seconds > slowest:
            end = f"a step of {size} windows takes {one.seconds:.1f} s"
        elif 2 * size > most:
            end = f"more than {most} windows were not asked for"
        size *= 2
    if not found:
        raise ValueError("not even one window fits: make block_size or the network smaller, or raise the limit")
    low = found[-1].size
    if too_large is None:
        if limit and (bytes_each := _slope(found)):
            fits = int((MARGIN * limit - found[-1].peak_bytes) / bytes_each) + low
            foretold, low = fits > low, max(low, fits)
        return Sizes(found, low, foretold, end)
    while too_large - low > max(1, low // 16):
        middle = (low + too_large) // 2
        needed = _foretold(found, middle)
        one = None if limit and needed and needed > MARGIN * limit else measure(middle)
        if one is None:
            too_large = middle
        else:
            low = middle
            found = sorted([*found, one], key=lambda other: other.size)
    return Sizes(found, low, foretold, end)


def _slope(found: list[Measured]) -> float | None:
    """Bytes a window, by the two largest sizes; None: they do not show any."""
    if len(found) < 2:
        return None
    a, b = found[-2:]
    return max(0.0, (b.peak_bytes - a.peak_bytes) / (b.size - a.size)) or None


def _foretold(found: list[Measured], size: int) -> float | None:
    """Peak of a size, on the straight line through the two nearest below it."""
    below = [one for one in found if one.size < size]
    slope = _slope(below)
    return None if slope is None else below[-1].peak_bytes + slope * (size - below[-1].size)


def measured_at(sizes: Sizes, size: int, measure: Measure) -> Sizes:
    """With one more size, unless it is larger than all that were tried, or does not fit.

    Args:
        sizes: of find_sizes.
        size: windows, such as those of a whole step.
        measure: tries one size.
    """
    if size > sizes.measured[-1].size or any(one.size == size for one in sizes.measured):
        return sizes
    one = measure(size)
    return sizes if one is None else replace(sizes, measured=sorted([*sizes.measured, one], key=lambda one: one.size))


def recommended(measured: list[Measured], near: float = NEAR) -> Measured:
    """The smallest within `near` of the best tokens/s."""
    best = max(one.tokens_per_second for one in measured)
    return next(one for one in measured if one.tokens_per_second >= (1 - near) * best)


def split(windows: int, measured: list[Measured], near: float = NEAR) -> tuple[Measured, int] | None:
    """Micro-batch and accumulation that make a step of `windows` of one device: among the measured sizes that divide
    it, the smallest within `near` of the fastest of them; None: none divides it."""
    dividing = [one for one in measured if windows % one.size == 0]
    if not dividing:
        return None
    chosen = recommended(dividing, near)
    return chosen, windows // chosen.size


def draw_sizes(sizes: Sizes, limit: int | None, path: Path) -> None:
    """Speed and memory over the micro-batch.

    Args:
        sizes: what was found.
        limit: bytes.
        path: PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    xs = [one.size for one in sizes.measured]
    chosen = recommended(sizes.measured)
    speed.plot(xs, [one.tokens_per_second for one in sizes.measured], marker="o", markersize=4)
    best = max(one.tokens_per_second for one in sizes.measured)
    speed.axhspan((1 - NEAR) * best, best, color="C2", alpha=0.15, label=f"within {NEAR:.0%} of the best")
    speed.plot([chosen.size], [chosen.tokens_per_second], "o", color="C1", label=f"smallest of these: {chosen.size}")
    speed.set(ylabel="tokens/s", ylim=(0, 1.1 * best))
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    memory.plot(xs, [one.peak_bytes / 2**30 for one in sizes.measured], marker="o", markersize=4, label="peak")
    if limit and limit < 4 * max(one.peak_bytes for one in sizes.measured):
        memory.axhline(limit / 2**30, color="C3", linestyle=":", label="limit")
    memory.set(ylabel="memory (GiB)")
    memory.set_ylim(bottom=0)
    for axes in (speed, memory):
        axes.set(xlabel="micro-batch (windows)", xscale="log")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)


def sizes_table(sizes: Sizes, windows: int) -> list[list[Any]]:
    """A row a size: windows, tokens/s, seconds a step, GiB, accumulation for a step of `windows`."""
    return [
        [
            one.size,
            f"{one.tokens_per_second:,.0f}",
            f"{one.seconds:.3f}",
            f"{one.peak_bytes / 2**30:.2f}",
            windows // one.size if windows % one.size == 0 else "-",
        ]
        for one in sizes.measured
    ]
