"""A result as one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
import io
from typing import Any

from lightning_gpt.load.result import LoadResult
from lightning_gpt.load.tables import Table, about, headline, tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222;
  background: #fff; }
h1 { font-size: 1.5em; margin-bottom: .2em; }
h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
.dim { color: #666; margin: .3em 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9em, 1fr)); gap: .7em; margin: 1.2em 0; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: .6em .9em; }
.card b { display: block; font-size: 1.2em; white-space: nowrap; font-variant-numeric: tabular-nums; }
.card span { color: #666; font-size: .85em; }
.note { background: #fff6d6; padding: .35em .8em; margin: .3em 0; border-radius: 4px; }
.missed { background: #fde3e1; padding: .35em .8em; margin: .3em 0; border-radius: 4px; }
.met { background: #e2f3e8; padding: .35em .8em; margin: .3em 0; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
svg { width: 100%; height: auto; }
code { background: #f3f3f3; padding: .15em .4em; border-radius: 4px; word-break: break-all; }
"""


def page(result: LoadResult, figure: Any, command: str, missed: list[str] | None) -> str:
    """The file's text.

    Args:
        result: of the load.
        figure: of matplotlib; becomes part of the page as SVG.
        command: that makes it again; empty = none.
        missed: aims that do not hold; None = there were no aims.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    picture = file.getvalue()
    picture = picture[picture.index("<svg") :]
    title = f"Load on {result.model}, {result.started}"
    cards = "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in headline(result)
    )
    notes = [f'<p class="missed">aim missed, {html.escape(one)}</p>' for one in missed or []]
    if missed == []:
        notes.append('<p class="met">every aim is met</p>')
    notes += [f'<p class="note">{html.escape(one)}</p>' for one in result.warnings]
    settings = Table(
        "Settings",
        ["setting", "value"],
        [[name, str(value)] for name, value in result.settings.items() if value not in (None, [], False)],
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="dim">{html.escape(about(result))}</p>',
        f'<p class="dim"><code>{html.escape(command)}</code></p>' if command else "",
        f'<div class="cards">{cards}</div>',
        *notes,
        picture,
        *(_table(one) for one in [*tables(result), settings]),
        '<p class="dim">Latencies run from the moment a request was due, whenever it was sent, to the end of its '
        "answer; they are those of right answers and of requests that timed out.</p>",
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(word)}</th>" for word in table.heading)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
