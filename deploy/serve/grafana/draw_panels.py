"""Draws one panel of a Grafana dashboard with matplotlib, about as Grafana does: dark, by the panel's own unit,
colours, stacking, thresholds and mappings. Times are seconds since 1970, values floats; NaN = nothing at that time."""

import itertools
import math
import re
from datetime import datetime
from typing import Any

import numpy as np

PAGE, PANEL, EDGE, TEXT, FAINT, GRID = "#111217", "#181b1f", "#2b2e34", "#ccccdc", "#8e8e9c", "#25282d"
COLORS = {"green": "#73bf69", "yellow": "#fade2a", "blue": "#5794f2", "orange": "#ff9830", "red": "#f2495c"}
COLORS |= {"purple": "#b877d9", "transparent": "none", "text": TEXT}
PALETTE = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ff7383", "#37872d", "#e0b400"]
Series = list[tuple[str, np.ndarray, np.ndarray]]
"""(legend, times, values) of each."""


def say(value: float, unit: str, decimals: int | None = None) -> str:
    """A number with its unit, in about three figures."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        shown = 100 * value
        return f"{shown:.{decimals if decimals is not None else 0 if abs(shown) >= 10 or shown == 0 else 1}f}%"
    if unit == "s":
        for size, word in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return "0 s"
    steps = (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")
    if unit != "bytes":
        steps = (1e9, "G"), (1e6, "M"), (1e3, "k")
    tail = {"reqps": " req/s", "ops": " /s", "bytes": " B"}.get(unit, "")
    for size, word in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {word}" + ("" if unit == "bytes" else tail)
    return (f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}") + tail


def threshold_color(defaults: dict[str, Any], value: float) -> str:
    """The colour of the last step that the value reaches."""
    steps = defaults.get("thresholds", {}).get("steps", [])
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLORS.get(reached[-1], TEXT) if reached else TEXT


def series_color(panel: dict[str, Any], name: str, number: int) -> str:
    """By the last override that names it, else from the palette."""
    color = PALETTE[number % len(PALETTE)]
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        if matcher["id"] == "byRegexp" and re.fullmatch(matcher["options"], name):
            fixed = [one["value"]["fixedColor"] for one in override["properties"] if one["id"] == "color"]
            color = COLORS.get(fixed[0], fixed[0]) if fixed else color
    return color


def _time_axis(axes: Any, span: tuple[float, float]) -> None:
    axes.set_xlim(*span)
    ticks = np.linspace(*span, 6 if axes.get_window_extent().width > 260 else 4)[1:-1]
    form = "%H:%M:%S" if span[1] - span[0] < 600 else "%H:%M"
    axes.set_xticks(ticks, [datetime.fromtimestamp(tick).strftime(form) for tick in ticks])
    axes.tick_params(colors=FAINT, labelsize=6.5, length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(axes: Any, names: list[tuple[str, str]]) -> None:
    """Names under the axes, in a line or two."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=color, linewidth=2.5) for _, color in names]
    box = axes.get_window_extent()
    columns = max(1, int(box.width / (4.6 * max(len(name) for name, _ in names) + 34)))
    axes.legend(
        marks[: 2 * columns],
        [name for name, _ in names][: 2 * columns],
        ncols=min(columns, len(names)),
        loc="upper left",
        bbox_to_anchor=(-0.02, -22 / box.height),
        frameon=False,
        fontsize=6.5,
        labelcolor=TEXT,
        handlelength=1.1,
        columnspacing=1.2,
        borderaxespad=0,
        labelspacing=0.35,
    )


def timeseries(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """Lines, areas, steps or bars, stacked or not."""
    from matplotlib.ticker import MultipleLocator

    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    axes.grid(axis="both", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    stacked = custom["stacking"]["mode"] == "normal"
    alpha = custom["fillOpacity"] / 100
    below: np.ndarray | float = 0.0
    for number, (name, times, values) in enumerate(series):
        color = series_color(panel, name, number)
        # In a stack, what is 0 has no line: it would lie on its neighbour's.
        drawn = np.where(values > 0, values + below, np.nan) if stacked else values
        if custom["drawStyle"] == "bars":
            width = 0.8 * (times[1] - times[0]) if len(times) > 1 else 1.0
            axes.bar(times, drawn - below, width, bottom=below, color=color, alpha=max(alpha, 0.4))
        else:
            steps = {"drawstyle": "steps-post"} if custom.get("lineInterpolation") == "stepAfter" else {}
            axes.plot(times, drawn, color=color, linewidth=1.1, **steps)
            if alpha:
                axes.fill_between(times, below, drawn, color=color, alpha=alpha, linewidth=0)
        below = below + np.nan_to_num(values) if stacked else 0.0
    if custom.get("thresholdsStyle", {}).get("mode") == "line":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and step["value"] <= 3 * axes.get_ylim()[1]:
                axes.axhline(step["value"], color=COLORS[step["color"]], linewidth=1, alpha=0.8)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        low, high = axes.get_ylim()
        if not any(np.nanmin(values, initial=0) < 0 for _, _, values in series):
            low, high = 0.0, high if any(np.nanmax(values, initial=0) > 0 for _, _, values in series) else 1.0
        low = defaults.get("min", low)
        axes.set_ylim(low, defaults.get("max", max(high, low + 1e-9)))
        if unit == "bytes":  # at round numbers of MiB, not of MB
            axes.yaxis.set_major_locator(MultipleLocator(2 ** max(math.ceil(math.log2(max(high, 1) / 5)), 0)))
        else:
            axes.yaxis.get_major_locator().set_params(nbins=5)
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(ticks, [say(tick, unit) for tick in ticks])
        axes.set_ylim(low, axes.get_ylim()[1])
    _time_axis(axes, span)
    _legend(axes, [(name, series_color(panel, name, number)) for number, (name, _, _) in enumerate(series)])


def _last(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept[-1]) if len(kept) else math.nan


def stat(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """The last value, large, over its course."""
    defaults = panel["fieldConfig"]["defaults"]
    _, times, values = series[0]
    value = _last(values)
    color = threshold_color(defaults, value)
    if panel["options"].get("graphMode") == "area" and len(values) > 1:
        low, high = np.nanmin(values), np.nanmax(values)
        shape = (values - low) / (high - low) if high > low else 0 * values + 0.5
        axes.fill_between(times, 0, 0.05 + 0.38 * shape, color=color, alpha=0.22, linewidth=0)
        axes.plot(times, 0.05 + 0.38 * shape, color=color, linewidth=1)
    shown = say(value, defaults["unit"], defaults.get("decimals"))
    axes.text(
        0.5, 0.62, shown, color=color, fontsize=19, ha="center", va="center", transform=axes.transAxes, weight="bold"
    )
    axes.set_xlim(*span)
    axes.set_ylim(0, 1)
    axes.axis("off")


def gauge(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """An arc from min to max, with the thresholds outside."""
    from matplotlib.patches import Wedge

    defaults = panel["fieldConfig"]["defaults"]
    value, low, high = _last(series[0][2]), defaults["min"], defaults["max"]

    def angle(at: float) -> float:
        return 200 - 220 * min(max((at - low) / (high - low), 0), 1)

    color = threshold_color(defaults, value)
    axes.add_patch(Wedge((0, 0), 1, -20, 200, width=0.3, color="#2b2e34"))
    if math.isfinite(value):
        axes.add_patch(Wedge((0, 0), 1, angle(value), 200, width=0.3, color=color))
    steps = defaults["thresholds"]["steps"]
    ends = [step["value"] for step in steps[1:]] + [high]
    for step, end in zip(steps, ends, strict=True):
        begin = low if step["value"] is None else step["value"]
        axes.add_patch(Wedge((0, 0), 1.1, angle(end), angle(begin), width=0.06, color=COLORS[step["color"]]))
    axes.text(0, 0.02, say(value, defaults["unit"]), color=color, fontsize=14, ha="center", va="center", weight="bold")
    axes.set(xlim=(-1.9, 1.9), ylim=(-0.4, 1.15), aspect="equal")
    axes.axis("off")


def heatmap(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """Cumulative buckets as a colour for each span of values."""
    edges = sorted(series, key=lambda one: float(one[0]))
    counts = np.diff(np.stack([values for _, _, values in edges]), axis=0, prepend=0)
    shown = np.flatnonzero(np.nansum(counts, axis=1) > 0)
    rows = range(max(shown[0] - 1, 0), min(shown[-1] + 2, len(edges))) if len(shown) else range(len(edges))
    kept = np.where(counts > 0, counts, np.nan)[rows.start : rows.stop]
    times = edges[0][1]
    axes.pcolormesh(times, np.arange(len(rows)), np.sqrt(kept), cmap="turbo", shading="nearest")
    ticks = list(range(0, len(rows), max(1, len(rows) // 6)))
    limits = [float(edges[rows[tick]][0]) for tick in ticks]
    axes.set_yticks(ticks, ["more" if math.isinf(limit) else f"≤ {say(limit, 's')}" for limit in limits])
    _time_axis(axes, span)


def state_timeline(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """A band for each series, coloured and named by the value's mapping."""
    mapping = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for number, (_, times, values) in enumerate(series):
        starts = [0, *(np.flatnonzero(np.diff(np.nan_to_num(values, nan=-1))) + 1), len(values)]
        for begin, end in itertools.pairwise(starts):
            if not math.isfinite(values[begin]):
                continue
            state = mapping.get(f"{values[begin]:g}", {"text": f"{values[begin]:g}", "color": "text"})
            left, right = times[begin], times[min(end, len(times) - 1)]
            axes.barh(number, right - left, 0.8, left, color=COLORS[state["color"]], alpha=0.75)
            if right - left > 0.12 * (span[1] - span[0]):
                axes.text(
                    left + 0.01 * (span[1] - span[0]), number, state["text"], color=PAGE, fontsize=6.5, va="center"
                )
    axes.set_yticks(range(len(series)), [name for name, _, _ in series])
    axes.set_ylim(len(series) - 0.4, -0.6)
    _time_axis(axes, span)


def table(axes: Any, panel: dict[str, Any], series: Series, span: tuple[float, float]) -> None:
    """A line for each series: its labels, its last value."""
    for number, (name, _, values) in enumerate(series[:8]):
        height = 0.92 - 0.13 * number
        axes.text(0.0, height, name, color=TEXT, fontsize=7.5, transform=axes.transAxes)
        shown = say(_last(values), panel["fieldConfig"]["defaults"]["unit"])
        axes.text(1.0, height, shown, color=COLORS["green"], fontsize=7.5, ha="right", transform=axes.transAxes)
    axes.axis("off")


KINDS = {"timeseries": timeseries, "stat": stat, "gauge": gauge, "heatmap": heatmap}
KINDS |= {"state-timeline": state_timeline, "table": table}
INSIDE = {"timeseries": (52, 50, 12), "heatmap": (52, 22, 12), "state-timeline": (100, 20, 8)}
"""Pixels that are left free at the left, below and at the right; a few for the others."""
