"""Pictures of a search: values over the trials, over each setting, and the settings' importance."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.metrics import unit_of

HISTORY_FILE, SLICE_FILE, IMPORTANCE_FILE = "history.png", "slice.png", "importance.png"
COMPLETE, PRUNED, DIVERGED = "came to its end", "stopped early, its last value", "diverged, or off the scale"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted setting -> its last part; as many parts as make it different from the others'."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = [part for part in key.split(".") if part != "init_args"]
        others = [[part for part in one.split(".") if part != "init_args"] for one in keys if one != key]
        length = next((n for n in range(1, len(parts)) if all(one[-n:] != parts[-n:] for one in others)), len(parts))
        names[key] = ".".join(parts[-length:])
    return names


def draw_history(results: dict[str, Any], directory: Path) -> Path | None:
    """history.png: each trial's value, and the lowest so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trials = results["trials"]
    if not trials:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    _scatter(axes, results, [one["number"] for one in trials])
    complete = [one for one in trials if one["state"] == "complete"]
    if complete:
        xs, ys, lowest = [], [], math.inf
        for one in complete:
            lowest = min(lowest, one["value"])
            xs.append(one["number"])
            ys.append(lowest)
        axes.step([*xs, trials[-1]["number"]], [*ys, lowest], where="post", color="C1", label="lowest so far")
    axes.set(xlabel="trial", ylabel=_label(results))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    return _save(figure, directory / HISTORY_FILE)


def draw_slices(results: dict[str, Any], directory: Path) -> Path | None:
    """slice.png: values over each setting of the space, a panel each."""
    from matplotlib.figure import Figure

    trials = results["trials"]
    if not trials:
        return None
    names = short_names(results["space"])
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(1.2 + 2.9 * columns, 0.6 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, (key, name) in zip(panels.flat, names.items()):
        values = [one["settings"][key] for one in trials]
        if key not in results["choices"]:
            _scatter(panel, results, values)
            if key in results["logarithmic"]:
                panel.set_xscale("log")
        else:
            texts = [json.dumps(value) for value in values]
            known = [json.dumps(value) for value in results["choices"][key]]
            # Apart from each other, as many trials have the same choice.
            spread = [known.index(text) + 0.3 * (((7 * i) % 11) / 10 - 0.5) for i, text in enumerate(texts)]
            _scatter(panel, results, spread)
            panel.set_xticks(range(len(known)), [_shortened(text) for text in known], fontsize=7)
            panel.set_xlim(-0.5, len(known) - 0.5)
        panel.set_xlabel(name)
    for row in panels:
        row[0].set_ylabel(_label(results))
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=4)
    return _save(figure, directory / SLICE_FILE)


def draw_importance(results: dict[str, Any], directory: Path) -> Path | None:
    """importance.png: a group of bars a setting; None when there were too few trials."""
    from matplotlib.figure import Figure

    found = results["importance"]
    if not found:
        return None
    names = short_names(results["space"])
    figure = Figure(figsize=(7, 1.2 + 0.55 * len(names)), layout="constrained")
    axes = figure.subplots()
    last = next(reversed(found.values()))["shares"]
    order = sorted(names, key=lambda key: last.get(key, 0.0))
    titles = {"end": "by the end of the {} that came there", "first": "by the first validation of {}"}
    height = 0.8 / len(found)
    for number, (kind, one) in enumerate(found.items()):
        places = [place + height * (number - (len(found) - 1) / 2) for place in range(len(order))]
        shares = [one["shares"].get(key, 0.0) for key in order]
        bars = axes.barh(places, shares, height, label=titles[kind].format(one["trials"]))
        axes.bar_label(bars, [f" {share:.2f}" for share in shares], fontsize=8)
    axes.set_yticks(range(len(order)), [names[key] for key in order])
    axes.set(xlabel="importance (share, PED-ANOVA)", xlim=(0, 1.08))
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, directory / IMPORTANCE_FILE)


def _shortened(text: str, most: int = 18) -> str:
    text = text.strip('"')
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _label(results: dict[str, Any]) -> str:
    unit = unit_of(results["metric"], results).strip()
    return f"{results['metric']} ({unit})" if unit else results["metric"]


def _scatter(axes: Any, results: dict[str, Any], xs: list[float]) -> None:
    """Every trial at its value: where it ended, or what it had come to when it was stopped."""
    trials = results["trials"]
    shown = [(x, one["state"], _shown_value(one), one["number"]) for x, one in zip(xs, trials)]
    top = _top([value for _, _, value, _ in shown if value is not None])
    kinds: dict[str, list[tuple[float, float]]] = {COMPLETE: [], PRUNED: [], DIVERGED: []}
    for x, state, value, _ in shown:
        if state == "diverged" or value is None or value > top:
            kinds[DIVERGED].append((x, top))
        else:
            kinds[COMPLETE if state == "complete" else PRUNED].append((x, value))
    styles = {
        COMPLETE: {"color": "C0"},
        PRUNED: {"facecolors": "none", "edgecolors": "gray"},
        DIVERGED: {"color": "C3", "marker": "^"},
    }
    for kind, points in kinds.items():
        if points:
            axes.scatter(*zip(*points), s=28, label=kind, zorder=3, **styles[kind])
    best = next(((x, value) for x, _, value, number in shown if number == results["best"]), None)
    if best:
        axes.scatter(*best, s=130, facecolors="none", edgecolors="C1", linewidths=1.6, label="best", zorder=4)
    axes.grid(alpha=0.3)


def _shown_value(trial: dict[str, Any]) -> float | None:
    finite = [value for _, value in trial["reports"] if value is not None]
    return trial["value"] if trial["value"] is not None else (finite[-1] if finite else None)


def _top(values: list[float]) -> float:
    """The end of the scale: what lies three times the middle half above it would flatten all else."""
    if not values:
        return 1.0
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    limit = upper + 3 * (upper - lower)
    return max(value for value in ordered if value <= limit)


def _save(figure: Any, path: Path) -> Path:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # processes that search together draw at once
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path
