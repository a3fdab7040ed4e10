"""Checks dashboard.json and the rules of ../prometheus: every expression is PromQL, names metrics that the service has
(or that a rule records), by labels that they have; panels do not overlap; variables and ids are sound.

python deploy/serve/grafana/lint.py [DASHBOARD.json [RULES.yml ...]]
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RULES = [HERE.parent / "prometheus" / name for name in ("rules.yml", "alerts.yml")]
OTHERS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}
OTHERS |= {"process_open_fds", "process_max_fds", "ALERTS"}
"""Metrics of Prometheus itself and of prometheus_client."""
OF_SCRAPING = {"job", "instance"}
"""Labels that Prometheus adds."""
COLUMNS = 24


def known_metrics() -> dict[str, set[str]]:
    """Metric as it is scraped -> its labels."""
    from lightning_gpt.serving.metric_table import METRICS

    known = {name: OF_SCRAPING | {"alertstate", "alertname"} for name in OTHERS}
    for one in METRICS:
        labels = {*one.labels} | OF_SCRAPING
        if one.kind == "histogram":
            known |= {f"{one.name}_bucket": labels | {"le"}, f"{one.name}_sum": labels, f"{one.name}_count": labels}
        else:
            known[one.name] = labels
    return known


def all_panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Panels in order, those inside collapsed rows too."""
    return [one for panel in dashboard["panels"] for one in (panel, *panel.get("panels", []))]


def fill_in(expression: str, variables: dict[str, str], interval: str = "1m") -> str:
    """An expression as Grafana sends it.

    Args:
        variables: value of each variable of the dashboard.
        interval: of $__rate_interval, $__interval, $__range.
    """
    expression = re.sub(r"\$(__rate_interval|__interval|__range)|\$\{(__\w+)\}", interval, expression)
    for name, value in variables.items():
        expression = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b", lambda _, value=value: value, expression)
    return expression


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every panel, variable and annotation, with variables filled in."""
    values = {one["name"]: ".*" for one in dashboard["templating"]["list"]}
    for panel in all_panels(dashboard):
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", fill_in(target["expr"], values)
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            selector = re.fullmatch(r"label_values\((.+), *\w+\)", one["query"]["query"])
            yield f"variable {one['name']}", fill_in(selector[1] if selector else one["query"]["query"], values)
    for one in dashboard["annotations"]["list"]:
        yield f"annotation {one['name']!r}", fill_in(one["expr"], values)


def of_rules(paths: list[Path]) -> tuple[list[tuple[str, str]], set[str]]:
    """(where, PromQL) of every rule, and the names that rules record."""
    import yaml

    found, recorded = [], set()
    for path in paths:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                found.append((f"{path.name} {rule.get('record') or rule['alert']}", rule["expr"]))
                recorded |= {rule["record"]} if "record" in rule else set()
    return found, recorded


def selectors(node: Any) -> Iterator[Any]:
    """The vector selectors of a parsed expression."""
    if type(node).__name__ == "VectorSelector":
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or []:
        yield from selectors(inner)


def wrong_expressions(found: list[tuple[str, str]], recorded: set[str]) -> Iterator[str]:
    """Mistakes, one a line."""
    import promql_parser

    known = known_metrics()
    for where, text in found:
        try:
            tree = promql_parser.parse(text)
        except ValueError as error:
            yield f"{where}: no PromQL: {error}: {text}"
            continue
        labels = set()
        for one in selectors(tree):
            if one.name in recorded:
                labels |= {"job", "model", "version", "code"}
            elif one.name not in known:
                yield f"{where}: the service has no metric {one.name}"
            else:
                labels |= known[one.name]
                for matcher in one.matchers.matchers:
                    if matcher.name not in known[one.name]:
                        yield f"{where}: {one.name} has no label {matcher.name}"
        for group in re.findall(r"\b(?:by|on) *\(([^)]*)\)", text):
            for label in (word.strip() for word in group.split(",") if word.strip()):
                if label not in labels:
                    yield f"{where}: no metric of it has a label {label}"


def wrong_layout(dashboard: dict[str, Any]) -> Iterator[str]:
    """Mistakes of ids, places, data sources and variables, one a line."""
    ids, taken = set(), {}
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    if [one["name"] for one in dashboard["templating"]["list"] if one["type"] == "datasource"] != ["datasource"]:
        yield "templating: one variable of type datasource, named datasource, is needed"
    for panel in all_panels(dashboard):
        where = f"panel {panel['title']!r}"
        if panel["id"] in ids:
            yield f"{where}: id {panel['id']} is taken"
        ids.add(panel["id"])
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > COLUMNS:
            yield f"{where}: gridPos {panel['gridPos']} is outside of {COLUMNS} columns"
        for cell in ((column, line) for column in range(x, x + w) for line in range(y, y + h)):
            if cell in taken:
                yield f"{where} overlaps {taken[cell]}"
                break
            taken[cell] = where
        if panel["type"] == "row":
            continue
        letters = [target["refId"] for target in panel["targets"]]
        if not letters or len({*letters}) < len(letters):
            yield f"{where}: refIds {letters} must be there and differ"
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            if source["uid"] != "${datasource}":
                yield f"{where}: data source {source['uid']}, not ${{datasource}}"
        used = re.findall(r"\$\{?(\w+)", " ".join(target["expr"] for target in panel["targets"]))
        for name in {one for one in used if not one.startswith("__")} - variables:
            yield f"{where}: there is no variable {name}"


def main(words: list[str]) -> int:
    """Exit status: 1 with every mistake on stderr."""
    dashboard = json.loads(Path(words[0] if words else HERE / "dashboard.json").read_text())
    rules, recorded = of_rules([Path(word) for word in words[1:]] or RULES)
    mistakes = [*wrong_layout(dashboard), *wrong_expressions([*expressions(dashboard), *rules], recorded)]
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
