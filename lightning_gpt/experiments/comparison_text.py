"""A comparison as a table: for the terminal, Markdown or CSV."""

import csv
import io
from typing import Any

from lightning_gpt.experiments.comparison import AXES, ENDED_OTHERWISE, Comparison, Row
from lightning_gpt.experiments.comparison_curves import curve_tag, sparklines
from lightning_gpt.experiments.group_statistics import Interval

MOST_SETTINGS = 8
"""Columns of settings that a terminal gets."""


def table(comparison: Comparison, most_settings: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of text: name, settings, metrics, differences, cost, status, curve.

    Args:
        comparison: what to show.
        most_settings: at most so many settings; None: all.
    """
    settings = comparison.settings[:most_settings]
    heading = ["run", *(short(name, comparison.settings) for name in settings)]
    for tag in comparison.metrics:
        heading.append(tag)
        if comparison.baseline is not None:
            heading.append(f"minus {comparison.baseline}")
    tag = curve_tag(comparison)
    lines = sparklines(comparison, tag)
    costs = [name for name, _ in _costs(comparison.rows[0]) if any(dict(_costs(row))[name] for row in comparison.rows)]
    heading += costs
    statuses = any(row.status for row in comparison.rows)
    heading += (["status"] if statuses else []) + ([f"{tag} over {comparison.axis}"] if lines else [])
    rows = []
    for row in comparison.rows:
        cells = [row.name, *(setting_text(row, name) for name in settings)]
        for metric in comparison.metrics:
            cells.append(interval_text(row.metrics.get(metric), count=comparison.grouped))
            if comparison.baseline is not None:
                shown = difference_text(row.differences.get(metric))
                cells.append("baseline" if row.name == comparison.baseline else shown)
        cells += [dict(_costs(row))[name] or "-" for name in costs]
        cells += ([row.status or "-"] if statuses else []) + ([lines.get(row.name, "")] if lines else [])
        rows.append(cells)
    return heading, rows


def short(name: str, names: list[str]) -> str:
    """The end of a dotted name, as much as tells it from the others."""
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if sum(other == end or other.endswith(f".{end}") for other in names) == 1:
            return end
    return name


def setting_text(row: Row, name: str) -> str:
    """A setting's value; "-" where the run has none."""
    if name not in row.settings:
        return "-"
    value = row.settings[name]
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def interval_text(interval: Interval | None, count: bool = False) -> str:
    """ "1.8857 ± 0.0031 (n=5)", or "-"."""
    if interval is None:
        return "-"
    text = number(interval.value)
    if interval.low is not None:
        text += f" ± {number((interval.high - interval.low) / 2)}"
    return text + (f" (n={interval.n})" if count else "")


def difference_text(difference: Interval | None) -> str:
    """ "-0.0117 ± 0.0101, p 0.03"."""
    if difference is None:
        return "-"
    text = ("+" if difference.value > 0 else "") + number(difference.value)
    if difference.low is None:
        return text
    p = "p < 0.001" if difference.p < 0.001 else f"p {difference.p:.2g}"
    return f"{text} ± {number((difference.high - difference.low) / 2)}, {p}"


def number(value: float) -> str:
    """Four decimals where they say something, thousands with commas, otherwise four digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if size >= 0.001 or size == 0 else f"{value:.2e}"


def _costs(row: Row) -> list[tuple[str, str]]:
    speed, memory, seconds = row.tokens_per_second, row.peak_memory_bytes, row.seconds
    return [
        ("tokens/s", f"{speed:,.0f}" if speed else ""),
        ("peak MiB", f"{memory / 2**20:,.0f}" if memory else ""),
        ("wall time", duration(seconds) if seconds else ""),
    ]


def duration(seconds: float) -> str:
    """34 s, 2:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}" if minutes >= 60 else f"{minutes}:{second:02d}"


def remarks(comparison: Comparison, most_settings: int | None = None) -> list[str]:
    """Lines below the table: where the values are from, what was left out, how differences were tested."""
    lines = []
    if comparison.place is not None:
        lines.append(f"values at {comparison.place:,.6g} {AXES[comparison.axis]}")
    if most_settings and len(comparison.settings) > most_settings:
        rest = comparison.settings[most_settings:]
        shown = ", ".join(rest[:12]) + (f" and {len(rest) - 12} others" if len(rest) > 12 else "")
        lines.append(f"not shown, though they differ: {shown}")
    tested = [one for row in comparison.rows for one in row.differences.values() if one.p is not None]
    if comparison.grouped:
        lines.append("± is the half-width of a 95% interval over seeds (Student t)")
    if tested:
        kinds = {"paired by seed (paired t-test)" if one.paired else "unpaired (Welch's t-test)" for one in tested}
        many = "; p is corrected for the number of rows (Holm)" if len(comparison.rows) > 2 else ""
        lines.append(f"differences are {' or '.join(sorted(kinds))}{many}")
    return lines


def plain(comparison: Comparison) -> str:
    """Columns aligned with blanks."""
    heading, rows = table(comparison, MOST_SETTINGS)
    widths = [max(map(len, column)) for column in zip(heading, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in (heading, *rows)]
    return "\n".join([*lines, *remarks(comparison, MOST_SETTINGS)])


def markdown(comparison: Comparison) -> str:
    """A table of Markdown, all settings."""
    heading, rows = table(comparison)
    lines = [heading, ["---"] * len(heading), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([text, *remarks(comparison)])


def as_csv(comparison: Comparison) -> str:
    """Numbers in full: for each metric value, low, high, n, and those of its difference."""
    heading: list[str] = ["run", "directories", *comparison.settings]
    parts = ("low", "high", "n")
    for tag in comparison.metrics:
        heading += [tag, *(f"{tag} {part}" for part in parts)]
        if comparison.baseline is not None:
            heading += [f"{tag} difference", *(f"{tag} difference {part}" for part in (*parts, "p"))]
    heading += ["tokens_per_second", "peak_memory_bytes", "seconds", "status"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heading)
    for row in comparison.rows:
        cells: list[Any] = [row.name, " ".join(run.directory.as_posix() for run in row.runs)]
        cells += [row.settings.get(name, "") for name in comparison.settings]
        for tag in comparison.metrics:
            one = row.metrics.get(tag)
            cells += [one.value, one.low, one.high, one.n] if one else [""] * 4
            if comparison.baseline is not None:
                one = row.differences.get(tag)
                cells += [one.value, one.low, one.high, one.n, one.p] if one else [""] * 5
        writer.writerow([*cells, row.tokens_per_second, row.peak_memory_bytes, row.seconds, row.status])
    return file.getvalue().rstrip("\n")


def show(comparison: Comparison) -> None:
    """Prints a rich table with as many settings as the terminal is wide."""
    from rich.console import Console
    from rich.table import Table

    console, most = Console(), MOST_SETTINGS
    while True:
        heading, rows = table(comparison, most)
        width = sum(max(map(len, column)) + 2 for column in zip(heading, *rows))
        if width <= console.width or most <= 1:
            break
        most -= 1
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(heading):
        shown.add_column(name, overflow="fold", style="cyan" if index == 0 else None)
    for row, cells in zip(comparison.rows, rows):
        sick = any(word in row.status for word in ENDED_OTHERWISE)
        shown.add_row(*cells, style="red" if sick else "bold" if row.name == comparison.baseline else None)
    console.print(shown)
    for line in remarks(comparison, most):
        console.print(line, style="dim", highlight=False)
