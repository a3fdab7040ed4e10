"""Draws dashboard.json from a running Prometheus, where no Grafana is at hand; or checks that every panel has data.

python deploy/serve/grafana/preview.py --prometheus http://127.0.0.1:9090 --minutes 10 --output dashboard.png
python deploy/serve/grafana/preview.py --check --may-be-empty "Drafts accepted"

Each expression is asked as Grafana would: $__rate_interval from step and scrape interval, variables filled in. The
picture is laid out by the panels' gridPos and says what has drawn it.
"""

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from draw_panels import EDGE, FAINT, INSIDE, KINDS, PAGE, PANEL, TEXT, Series
from lint import COLUMNS, all_panels, fill_in

CELL, GAP, HEAD = 38, 8, 62
"""Pixels: a line of the grid with its gap, the gap, the page's head."""


class Prometheus:
    """Asks one over its HTTP API for a span of time.

    Args:
        span: (begin, end), seconds since 1970.
        step: seconds between two values.
    """

    def __init__(self, url: str, span: tuple[float, float], step: float) -> None:
        self.url, self.span, self.step = url.rstrip("/"), span, step

    def range(self, expression: str) -> list[dict[str, Any]]:
        """[{"metric": labels, "values": [[time, "value"], ...]}, ...].

        Raises:
            SystemExit: it cannot be reached or refuses the expression.
        """
        asked = {"query": expression, "start": self.span[0], "end": self.span[1], "step": self.step}
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/query_range", urllib.parse.urlencode(asked).encode()
            ) as said:
                return json.load(said)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"Prometheus refuses {expression}: {json.load(error).get('error')}") from None
        except urllib.error.URLError as error:
            raise SystemExit(f"no Prometheus at {self.url}: {error.reason}") from None

    def series(self, panel: dict[str, Any], variables: dict[str, str], rate: str) -> tuple[Series, list[str]]:
        """What a panel shows, on one grid of times, and those of its expressions that give nothing."""
        grid = np.arange(self.span[0], self.span[1] + self.step / 2, self.step)
        found, empty = [], []
        for target in panel["targets"]:
            expression = fill_in(target["expr"], variables, rate)
            results = self.range(expression)
            if not results:
                empty.append(expression)
            for one in results:
                values = np.full(len(grid), np.nan)
                for at, value in one["values"]:
                    values[round((at - self.span[0]) / self.step)] = float(value)
                labels = one["metric"]
                name = re.sub(
                    r"\{\{(\w+)\}\}", lambda found, labels=labels: labels.get(found[1], ""), target["legendFormat"]
                )
                found.append((name.strip() or ", ".join(filter(None, labels.values())) or "-", grid, values))
        return found, empty


def shown_panels(dashboard: dict[str, Any], rows: list[str]) -> list[dict[str, Any]]:
    """The panels under the named rows, moved up to where nothing is left out; all if none is named."""
    kept, shift, row, end = [], 0, None, 0
    known = [panel["title"] for panel in all_panels(dashboard) if panel["type"] == "row"]
    for name in rows:
        if name not in known:
            raise SystemExit(f"--row {name!r}: there is no such row; there are {', '.join(map(repr, known))}")
    for panel in sorted(all_panels(dashboard), key=lambda one: (one["gridPos"]["y"], one["gridPos"]["x"])):
        place = panel["gridPos"]
        if panel["type"] == "row":
            row = panel["title"]
            shift = place["y"] - end
        if rows and row not in rows:
            continue
        kept.append({**panel, "gridPos": {**place, "y": place["y"] - shift}})
        end = max(end, place["y"] - shift + place["h"])
    return kept


def draw(dashboard: dict[str, Any], panels: list[dict[str, Any]], data: dict[int, Series], options: Any) -> Any:
    """The whole page as a figure of `options.width` pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    width = options.width
    height = HEAD + CELL * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + GAP
    figure = pyplot.figure(figsize=(width / 100, height / 100), dpi=100, facecolor=PAGE)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))
    page.axis("off")
    page.text(16, 24, dashboard["title"], color=TEXT, fontsize=13, va="center", weight="bold")
    begin, end = (datetime.fromtimestamp(one).strftime("%Y-%m-%d %H:%M:%S") for one in options.span)
    chosen = "   ".join(f"{name}: {'All' if value == '.*' else value}" for name, value in options.variables.items())
    page.text(16, 48, f"{begin} to {end}   {chosen}", color=FAINT, fontsize=8, va="center")
    page.text(
        width - 16, 24, "drawn from dashboard.json by preview.py", color=FAINT, fontsize=8, va="center", ha="right"
    )
    unit = (width - 2 * GAP) / COLUMNS
    for panel in panels:
        place = panel["gridPos"]
        left, top = GAP + place["x"] * unit, HEAD + place["y"] * CELL
        wide, high = place["w"] * unit - GAP, place["h"] * CELL - GAP
        if panel["type"] == "row":
            page.text(
                left + 8, top + high / 2, f"▾  {panel['title']}", color=TEXT, fontsize=10, va="center", weight="bold"
            )
            continue
        style = "round,pad=0,rounding_size=3"
        page.add_patch(FancyBboxPatch((left, top), wide, high, boxstyle=style, facecolor=PANEL, edgecolor=EDGE))
        page.text(left + 10, top + 15, panel["title"], color=TEXT, fontsize=8, va="center", weight="bold")
        series = data[panel["id"]]
        if not series:
            page.text(left + wide / 2, top + high / 2, "No data", color=FAINT, fontsize=10, ha="center", va="center")
            continue
        free, under, right = INSIDE.get(panel["type"], (10, 8, 10))
        box = (left + free, height - top - high + under, wide - free - right, high - under - 30)
        corners = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        axes = figure.add_axes(corners, facecolor="none")
        KINDS[panel["type"]](axes, panel, series, options.span)
    return figure


def options_of(words: list[str], dashboard: dict[str, Any]) -> Any:
    """The command line, with the span and the variables worked out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=15, help="how far back")
    parser.add_argument("--end", type=float, default=None, help="seconds since 1970; now, if not given")
    parser.add_argument("--scrape", type=float, default=10, help="scrape_interval, in seconds")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable; else all")
    parser.add_argument("--row", action="append", default=[], help="draw only this row; may be repeated")
    parser.add_argument("--width", type=int, default=1600, help="pixels")
    parser.add_argument("--output", type=Path, default=Path("dashboard.png"))
    parser.add_argument("--check", action="store_true", help="draw nothing; exit 1 if an expression gives no data")
    parser.add_argument(
        "--may-be-empty", action="append", default=[], metavar="TITLE", help="a panel without data is right"
    )
    options = parser.parse_args(words)
    if options.minutes <= 0 or options.scrape <= 0:
        parser.error("--minutes and --scrape must be above 0")
    variables = {one["name"]: ".*" for one in dashboard["templating"]["list"] if one["type"] == "query"}
    for one in options.set:
        name, _, value = one.partition("=")
        if name not in variables:
            parser.error(f"--set {one}: the variables are {', '.join(variables)}")
        variables[name] = value
    end = time.time() if options.end is None else options.end
    options.variables, options.span = variables, (end - 60 * options.minutes, end)
    return options


def main(words: list[str]) -> int:
    """Exit status."""
    dashboard = json.loads((Path(__file__).parent / "dashboard.json").read_text())
    options = options_of(words, dashboard)
    step = max((options.span[1] - options.span[0]) / 240, min(options.scrape, 1))
    rate = f"{max(step + options.scrape, 4 * options.scrape):.0f}s"
    prometheus = Prometheus(options.prometheus, options.span, step)
    data, mute = {}, 0
    panels = shown_panels(dashboard, options.row)
    for panel in panels:
        if panel["type"] == "row":
            continue
        data[panel["id"]], empty = prometheus.series(panel, options.variables, rate)
        if panel["title"] not in options.may_be_empty:
            for expression in empty:
                print(f"no data: panel {panel['title']!r}: {expression}", file=sys.stderr)
            mute += len(empty)
    if options.check:
        print(f"{len(data)} panels, {mute} expressions without data")
        return bool(mute)
    draw(dashboard, panels, data, options).savefig(options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
