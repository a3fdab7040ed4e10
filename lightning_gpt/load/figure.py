"""A result as a picture: rates, latencies over time and all together, work under way, errors, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gpt.load.result import LoadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREEN, ORANGE, RED, GREY, PURPLE = "#2f6db5", "#2e9960", "#e08a1e", "#c8372d", "#777777", "#7b5aa6"
MOST_KINDS = 6
"""Kinds of errors that get a colour."""


def draw(result: LoadResult) -> Any:
    """The figure, of matplotlib."""
    from matplotlib.figure import Figure

    panels: list[Callable[[Any, LoadResult], None]] = [_rates, _latencies, _distribution, _under_way]
    if result.errors:
        panels.append(_errors)
    if result.watched:
        panels.append(_memory)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 3.6 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    places = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, panel in zip(places, panels):
        panel(axes, result)
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return figure


def _whole_seconds(result: LoadResult) -> int:
    """Seconds of the series that were whole ones; the last, cut short, would look like a collapse."""
    count = len(result.series["second"])
    return max(min(count, int(result.seconds)), min(count, 1))


def _column(result: LoadResult, name: str) -> np.ndarray:
    return np.array(result.series[name][: _whole_seconds(result)], dtype=np.float64)


def _middles(result: LoadResult) -> np.ndarray:
    """Each second's middle, [seconds]."""
    return np.arange(_whole_seconds(result)) + 0.5


def _over_time(axes: Axes, result: LoadResult, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="time since start (s)", ylabel=unit)
    axes.set_xlim(0, max(_whole_seconds(result), 1))
    if result.settings["warmup_s"]:
        axes.axvspan(0, result.settings["warmup_s"], color=GREY, alpha=0.12, linewidth=0)


def _rates(axes: Axes, result: LoadResult) -> None:
    x, style = (
        _middles(result),
        {"linewidth": 1.4, "marker": "o" if len(_middles(result)) < 40 else "", "markersize": 3},
    )
    axes.plot(x, _column(result, "sent"), color=GREY, label="sent", **style)
    axes.plot(x, _column(result, "ok"), color=BLUE, label="right answers", **style)
    good = f"within {result.settings['slo_ms']:g} ms"
    axes.plot(x, _column(result, "good"), color=GREEN, linestyle="--", label=good, **style | {"marker": ""})
    if result.errors:
        axes.plot(x, _column(result, "errors"), color=RED, label="errors", **style)
    _over_time(axes, result, "Rate" + (" (grey: warm-up)" if result.settings["warmup_s"] else ""), "requests/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="best")


def _latencies(axes: Axes, result: LoadResult) -> None:
    x = _middles(result)
    for name, colour in (("p50_ms", BLUE), ("p90_ms", ORANGE), ("p99_ms", RED)):
        values = _column(result, name)
        marker = "o" if len(x) < 40 else ""
        axes.plot(x, values, color=colour, linewidth=1.4, marker=marker, markersize=3, label=name[:3].upper())
    _slo(axes.axhline, result)
    axes.set_yscale("log")
    axes.autoscale_view()
    _plain_ticks(axes.yaxis)
    _over_time(axes, result, "Latency, by the second in which requests were due", "latency (ms)")
    axes.legend(fontsize=8, loc="best")


def _slo(line: Callable[..., Any], result: LoadResult) -> None:
    slo = result.settings["slo_ms"]
    line(slo, color="black", linestyle=":", linewidth=1.2, label=f"objective, {slo:g} ms")


def _plain_ticks(axis: Any) -> None:
    """Numbers such as 20 and 500 on a logarithmic axis, in place of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distribution(axes: Axes, result: LoadResult) -> None:
    rest = 1 - np.array(result.quantiles["shares"])
    rest[-1] = rest[-2] / 2
    for name, label, colour in (("latency_ms", "whole answer", BLUE), ("ttft_ms", "first token", PURPLE)):
        values = np.array(result.quantiles[name])
        if len(values):
            axes.plot(np.maximum(values, 1e-3), 100 * rest, color=colour, linewidth=1.6, label=label)
    for percent, name in ((50, "P50"), (1, "P99"), (0.1, "P99.9")):
        axes.axhline(percent, color=GREY, linewidth=0.7, alpha=0.6)
        axes.annotate(
            name, (1.0, percent), xycoords=("axes fraction", "data"), fontsize=8, color=GREY, va="bottom", ha="right"
        )
    _slo(axes.axvline, result)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.08)  # room for the names of the percentiles
    axes.set_ylim(max(50 / max(result.totals["requests"], 1), 1e-3), 110)
    _plain_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(title="Requests that took longer", xlabel="latency (ms)", ylabel="share of requests (%)")
    axes.legend(fontsize=8, loc="lower left")


def _under_way(axes: Axes, result: LoadResult) -> None:
    values = _column(result, "in_flight")
    axes.fill_between(_middles(result) + 0.5, values, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(_middles(result) + 0.5, values, color=BLUE, linewidth=1.4, label="requests under way")
    _over_time(axes, result, "Requests under way, and output", "requests")
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(_middles(result), _column(result, "tokens"), color=ORANGE, linewidth=1.2, label="tokens")
    other.set_ylabel("output tokens/s", color=ORANGE)
    other.tick_params(axis="y", colors=ORANGE)
    other.set_ylim(bottom=0)
    other.spines[["top"]].set_visible(False)
    lines = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=lines, fontsize=8, loc="lower right")


def _errors(axes: Axes, result: LoadResult) -> None:
    x, below = _middles(result), np.zeros(_whole_seconds(result))
    kinds = [kind for kind in result.errors if kind in result.series["errors_by_kind"]]
    for place, kind in enumerate(kinds[:MOST_KINDS]):
        values = np.array(result.series["errors_by_kind"][kind][: len(x)], dtype=np.float64)
        axes.bar(x, values, width=1.0, bottom=below, color=f"C{place}", label=f"{kind} ({result.errors[kind]:,})")
        below = below + values
    _over_time(axes, result, "Errors by kind", "errors/s")
    axes.set_ylim(0, max(below.max(initial=0) * 1.15, 1))
    axes.legend(fontsize=8, loc="best")


def _memory(axes: Axes, result: LoadResult) -> None:
    x = [one["second"] for one in result.watched]
    axes.plot(x, [one["rss_bytes"] / 2**20 for one in result.watched], color=PURPLE, linewidth=1.6, label="memory")
    _over_time(axes, result, "Processes of the server", "resident memory (MiB)")
    axes.set_ylim(0, 1.1 * max(one["rss_bytes"] / 2**20 for one in result.watched) + 1)
    other = axes.twinx()
    other.plot(x, [one["cpu_percent"] for one in result.watched], color=GREEN, linewidth=1.0, label="processor")
    other.set_ylabel("processor (% of a core)", color=GREEN)
    other.tick_params(axis="y", colors=GREEN)
    other.set_ylim(bottom=0)
    other.spines[["top"]].set_visible(False)
    lines = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=lines, fontsize=8, loc="lower right")
