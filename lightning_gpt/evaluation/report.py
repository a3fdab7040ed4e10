"""results.json and one page per model: table with standard errors, bars, radar, and how it was run; all in one file."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from lightning_gpt.evaluation.report_figures import bars, radar

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}"
    "td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}img{max-width:100%}"
    "code{background:#f4f4f4;padding:.1rem .3rem;overflow-wrap:anywhere}small{color:#666}"
)
FURTHER = {
    "acc": "unnormalised {:.3f}",
    "subject_mean": "mean over subjects {:.3f}",
    "bias_score": "bias score {:+.3f} (1: every wrong answer is the stereotype's, 0: no lean)",
    "strict_match": "in the asked form {:.3f}",
    "perplexity": "perplexity {:.1f}",
    **{f"pass@{k}": f"pass@{k} {{:.3f}}" for k in (5, 10, 25, 50, 100)},
}
"""Numbers beside the main one, as the table mentions them."""
Content = dict[str, Any]
"""What results.json holds: name, command, results, about; of published scores at least name and results, whose rows
have at least a value, and a note."""


def read_results(path: Path) -> Content:
    """Another model's results.json, or published scores in its form.

    Raises:
        ValueError: it is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["name"], str):
            raise TypeError("name is no text")
        for row in content["results"].values():
            float(row["value"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"compare={path} is no results.json of an evaluation: {error}") from None
    return content


def shown(row: dict[str, Any]) -> str:
    """0.312 ± 0.021."""
    return f"{row['value']:.3f}" + ("" if row.get("stderr") is None else f" ± {row['stderr']:.3f}")


def further(row: dict[str, Any]) -> list[str]:
    """What is known beside the main number, in words."""
    found = [text.format(row[name]) for name, text in FURTHER.items() if row.get(name) is not None]
    if row.get("outcomes"):
        found.append("programs: " + ", ".join(f"{count} {reason}" for reason, count in row["outcomes"].items()))
    if row.get("fence"):
        found.append(f"kept in by {row['fence']}")
    return found


def summary(results: dict[str, dict[str, Any]]) -> str:
    """A line per evaluation."""
    width = max(map(len, results))
    lines = []
    for task, row in results.items():
        guess = "" if row["chance"] is None else f", guessing {row['chance']:.2f}"
        lines.append(f"{task:<{width}}  {row['metric']:<13} {shown(row)}  (n={row['n']:,} of {row['of']:,}{guess})")
    return "\n".join(lines)


def measured_before(directory: Path, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results in a directory that the same model, settings and versions gave: a stopped evaluation goes on."""
    try:
        before = json.loads((directory / "results.json").read_text(encoding="utf-8"))
        return before["results"] if before["about"] == about else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_results(directory: Path, content: Content, token: int = 0) -> None:
    """results.json. Arguments as write_report."""
    _write(directory / "results.json", json.dumps(content, indent=1) + "\n", token)


def write_report(directory: Path, content: Content, others: list[Content], token: int = 0) -> Path:
    """results.json and report.html.

    Args:
        directory: where; made when it is not there.
        content: of this model.
        others: shown beside it.
        token: tells the temporary files of several processes apart.

    Returns:
        Path of the page.
    """
    write_results(directory, content, token)
    _write(directory / "report.html", page(content, others), token)
    return directory / "report.html"


def _write(path: Path, text: str, token: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def page(content: Content, others: list[Content]) -> str:
    """The page."""
    columns = [content, *others]
    pictures = [picture for picture in (bars(columns), radar(columns)) if picture is not None]
    images = "".join(f'<p><img src="data:image/png;base64,{base64.b64encode(p).decode()}"></p>' for p in pictures)
    notes = "".join(
        f"<p><small>{html.escape(one['name'])}: {html.escape(one['note'])}</small></p>"
        for one in columns
        if "note" in one
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(content['name'])}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(content['name'])}</h1>"
        f"<p><code>{html.escape(content['command'])}</code></p>{_table(columns)}"
        f"<p>± one standard error of the mean over the questions asked. n of N: so many of a set's questions, drawn by "
        f"the seed.</p>{notes}{images}{_subjects(content)}{_facts(content)}</html>\n"
    )


def _table(columns: list[Content]) -> str:
    head = "".join(f"<th class=n>{html.escape(one['name'])}</th>" for one in columns)
    rows = []
    for task, row in columns[0]["results"].items():
        cells = "".join(
            f"<td class=n>{shown(one['results'][task]) if task in one['results'] else ''}</td>" for one in columns
        )
        chance = "" if row["chance"] is None else f"{row['chance']:.2f}"
        more = "".join(f"<br><small>{html.escape(text)}</small>" for text in further(row))
        rows.append(
            f"<tr><td>{task}</td><td>{row['metric']}</td>{cells}<td class=n>{chance}</td>"
            f"<td class=n>{row['n']:,} of {row['of']:,}</td><td class=n>{row['shots']}</td>"
            f"<td>{html.escape(row['about'])}{more}</td></tr>"
        )
    return (
        f"<table><tr><th>task</th><th>metric</th>{head}<th class=n>guessing</th><th class=n>n of N</th>"
        f"<th class=n>examples</th><th>what it asks</th></tr>{''.join(rows)}</table>"
    )


def _subjects(content: Content) -> str:
    found = content["results"].get("mmlu", {}).get("subjects")
    if not found:
        return ""
    cells = ", ".join(f"{html.escape(name.replace('_', ' '))} {value:.2f}" for name, value in found.items())
    return f"<h2>MMLU by subject</h2><p>{cells}</p>"


def _facts(content: Content) -> str:
    facts = dict(content["about"])
    facts |= {f"data of {task} (SHA-256)": row["data_sha256"] for task, row in content["results"].items()}
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td><code>{html.escape(str(value))}</code></td></tr>"
        for name, value in facts.items()
    )
    return f"<h2>How it was run</h2><table>{rows}</table>"
