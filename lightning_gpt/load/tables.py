"""A result as tables of words, for the terminal and for the page."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from lightning_gpt.load.result import LoadResult

NONE = "-"


@dataclass(frozen=True)
class Table:
    """Rows of words under a heading; the first column names the row."""

    title: str
    heading: list[str]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        """For a terminal: columns of equal width, numbers to the right."""
        rows = [self.heading, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.heading))]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def number(value: float | None, digits: int = 1) -> str:
    """With thousands apart; - where there is none."""
    return NONE if value is None or value != value else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """In percent."""
    return NONE if value is None or value != value else f"{value:.3%}"


def headline(result: LoadResult) -> list[tuple[str, str]]:
    """The figures that one asks for first: (name, value)."""
    totals = result.totals
    return [
        ("right answers a second", number(totals["rate_ok"])),
        (f"within {result.settings['slo_ms']:g} ms, a second", number(totals["goodput"])),
        ("P50", f"{number(totals['latency_ms']['p50'])} ms"),
        ("P99", f"{number(totals['latency_ms']['p99'])} ms"),
        ("errors", share(totals["error_rate"])),
        ("availability", share(totals["availability"])),
        ("tokens a second", number(totals["tokens_per_second"], 0)),
    ]


def durations(result: LoadResult) -> Table:
    """Latencies and what they are made of."""
    names = {
        "latency": "latency_ms",
        "time to first token": "ttft_ms",
        "time per output token": "tpot_ms",
        "between tokens": "itl_ms",
        "sent late by": "client_lag_ms",
    }
    columns = {"mean": "mean", "P50": "p50", "P90": "p90", "P95": "p95", "P99": "p99", "P99.9": "p99_9", "max": "max"}
    rows = []
    for name, key in names.items():
        found = result.totals[key]
        if found["mean"] == found["mean"]:
            rows.append([name, *(number(found[column], 2) for column in columns.values())])
    return Table("Durations", ["ms", *columns], rows)


def steps(result: LoadResult) -> Table:
    """The parts of the schedule."""
    heading = ["requests/s", "seconds", "right/s", "goodput/s", "tokens/s", "P50 ms", "P99 ms", "errors", "holds"]
    rows = []
    for one in result.steps:
        rates = [f"{one['rate_from']:g}", f"{one['rate_to']:g}"]
        rows.append(
            [
                rates[0] if rates[0] == rates[1] else "-".join(rates),
                number(one["seconds"], 0),
                number(one["rate_ok"]),
                number(one["goodput"]),
                number(one["tokens_per_second"], 0),
                number(one["latency_ms"]["p50"]),
                number(one["latency_ms"]["p99"]),
                share(one["error_rate"]),
                "yes" if one["holds"] else "no",
            ]
        )
    held = [one["rate_to"] for one in itertools.takewhile(lambda one: one["holds"], result.steps)]
    ceiling = f"{max(held):,g} requests/s hold" if held else "none holds"
    return Table(f"Steps: {ceiling}", heading, rows)


def tenants(result: LoadResult) -> Table:
    """The keys."""
    rows = [
        [
            f"key {one['tenant'] + 1}",
            number(one["requests"], 0),
            number(one["rate_ok"]),
            number(one["latency_ms"]["p50"]),
            number(one["latency_ms"]["p99"]),
            share(one["error_rate"]),
        ]
        for one in result.tenants
    ]
    return Table("Tenants", ["tenant", "requests", "right/s", "P50 ms", "P99 ms", "errors"], rows)


def errors(result: LoadResult) -> Table:
    """What went wrong."""
    sent = max(result.totals["requests"], 1)
    rows = [[kind, number(count, 0), share(count / sent)] for kind, count in result.errors.items()]
    return Table("Errors", ["kind", "requests", "share"], rows)


def watched(result: LoadResult) -> Table:
    """The server's processes, at the beginning, the end and the most."""
    rows = []
    for name, key, unit, scale in (("memory", "rss_bytes", "MiB", 2**20), ("processor", "cpu_percent", "%", 1)):
        values = [one[key] / scale for one in result.watched]
        if values:
            found = (values[0], values[-1], sum(values) / len(values), max(values))
            rows.append([f"{name} ({unit})", *(number(one) for one in found)])
    return Table("Processes of the server", ["", "first", "last", "mean", "most"], rows)


def tables(result: LoadResult) -> list[Table]:
    """All that have rows."""
    every = [durations(result), steps(result), tenants(result), errors(result), watched(result)]
    return [table for table in every if table.rows]


def about(result: LoadResult) -> str:
    """What was asked, of whom, on what."""
    machine, totals = result.hardware, result.totals
    pinned = "" if machine["pinned_core"] is None else f" on core {machine['pinned_core']}"
    own = f"generator{pinned} took {totals['client_processor_percent']:.0f}% of a core"
    loop = (
        f"closed loop of {result.settings['concurrency']} clients"
        if result.settings["concurrency"]
        else f"open loop, {result.settings['arrivals']} arrivals"
    )
    return (
        f"{totals['requests']:,} requests to {result.model}, {totals['rate_sent']:,.1f}/s, "
        f"for {result.sending_s:,.1f} s ({loop}); {machine['cpu']}, {machine['cores']} core(s), {own}"
    )


def text(result: LoadResult) -> str:
    """The whole summary for a terminal."""
    lines = [about(result), "  ".join(f"{name}: {value}" for name, value in headline(result))]
    for table in tables(result):
        lines += ["", table.title, *table.lines()]
    return "\n".join([*lines, *([""] if result.warnings else []), *(f"warning: {one}" for one in result.warnings)])
