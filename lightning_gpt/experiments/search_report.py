"""report.md and best.yaml of a search; made from its results.json alone."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.experiments.comparisons import comparisons_of
from lightning_gpt.experiments.machine import hardware_in_words
from lightning_gpt.experiments.metrics import unit_of
from lightning_gpt.experiments.results import save_results
from lightning_gpt.experiments.search_figures import draw_history, draw_importance, draw_slices, short_names
from lightning_gpt.experiments.settings import nested
from lightning_gpt.experiments.spec_checks import PREPARE_KEY
from lightning_gpt.experiments.tables import markdown, results_table

REPORT_FILE = "report.md"
BEST_FILE = "best.yaml"
TOP = 10
"""Trials in the table."""
LUCK = (
    "The lowest of many values is partly luck of its seed: run again, these settings are expected to do a little worse "
    "than this value."
)


def write_search_report(results: dict[str, Any], directory: Path) -> Path:
    """Writes results.json, best.yaml, figures and report.md.

    Args:
        results: of collect_search.
        directory: where they go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_results({**results, "cells": []}, directory)
    if (best := best_trial(results)) is not None:
        _write(directory / BEST_FILE, best_yaml(results, best))
    drawn = [draw(results, directory) for draw in (draw_history, draw_slices, draw_importance)]
    path = directory / REPORT_FILE
    _write(path, report_text(results, [one.name for one in drawn if one]))
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def best_trial(results: dict[str, Any]) -> dict[str, Any] | None:
    """The complete trial with the lowest value."""
    return next((one for one in results["trials"] if one["number"] == results["best"]), None)


def best_yaml(results: dict[str, Any], best: dict[str, Any]) -> str:
    """A file to stack with -c over the search's configs."""
    fit = {key: one for key, one in best["settings"].items() if not key.startswith(PREPARE_KEY)}
    corpus = {key: one for key, one in best["settings"].items() if key.startswith(PREPARE_KEY)}
    lines = [
        f"# Trial {best['number']} of a search: {results['metric']} {best['value']:.4f} after {results['budget']}.",
        f"#   {results['command']}",
    ]
    lines += [f"# {key}: {one} of `lightning-gpt prepare`" for key, one in corpus.items()]
    return "\n".join(lines) + "\n" + yaml.safe_dump(nested({**results["overrides"], **fit}), sort_keys=False)


def report_text(results: dict[str, Any], figures: list[str]) -> str:
    """The report in Markdown."""
    parts = [f"# {results['question']}", f"```\n{results['command']}\n```"]
    if results["expectation"]:
        parts.append(f"Expected: {results['expectation']}")
    parts += ["## Conclusion", conclusion(results)]
    best = best_trial(results)
    if best is not None:
        flags = " ".join(f"--{key} {_shell(value)}" for key, value in best["settings"].items())
        parts += ["## Best settings", f"`-c {BEST_FILE}` after the configs, or:", f"```\n{flags}\n```"]
    if confirmation := results["confirmation"]:
        parts += [
            "## Confirmed with fresh seeds",
            results_table(confirmation, results["metric"]),
            "Both were trained again with seeds that had no part in the choice; differences are taken between runs of "
            "one seed, ± is the half-width of the 95% t interval.",
        ]
    parts += ["## Trials", trials_table(results), costs(results)]
    captions = {
        "history.png": "Values over the trials",
        "slice.png": "Values over each setting",
        "importance.png": "Which setting decides",
    }
    parts += [f"![{captions[name]}]({name})" for name in figures]
    if "importance.png" in figures:
        parts.append(
            "Importance is PED-ANOVA's (Watanabe et al., 2023): how much the best tenth of the trials differs from all "
            "of them in a setting, as a share. A few dozen trials give its order, not its digits."
        )
    parts += ["## Set-up", setup(results), machine(results)]
    return "\n\n".join(parts) + "\n"


def conclusion(results: dict[str, Any]) -> str:
    """What was found, and how far to believe it."""
    best, metric, unit = best_trial(results), results["metric"], unit_of(results["metric"], results)
    if best is None:
        return "No trial came to its end."
    names = short_names(results["space"])
    settings = ", ".join(f"{names[key]} {_plain(value)}" for key, value in best["settings"].items())
    complete = [one for one in results["trials"] if one["state"] == "complete"]
    text = [
        f"Lowest {metric} of {len(results['trials'])} trials: {best['value']:.4f}{unit} (trial {best['number']}: "
        f"{settings})."
    ]
    first = next((one for one in complete if one["number"] == 0), None) if results["start"] else None
    if first is not None and first is not best:
        text.append(f"The start, trial 0, has {first['value']:.4f}.")
    elif results["start"] and first is None:
        text.append("The start, trial 0, was stopped before its end.")
    confirmation = results["confirmation"]
    if confirmation is None:
        return " ".join([*text, LUCK])
    found = comparisons_of(confirmation, metric).get("best")
    if found is None:
        return " ".join([*text, LUCK, "The confirmation has no pair of finished runs."])
    text.append(
        f"With {found.difference.n} fresh seeds the best minus the start is {found.difference.text(signed=True)}"
        f"{unit}: {found.verdict}. That is the number to quote; the search's own is partly luck of its seed."
    )
    return " ".join(text)


def trials_table(results: dict[str, Any]) -> str:
    """The best trials that came to their end, with their settings."""
    names = short_names(results["space"])
    complete = sorted((t for t in results["trials"] if t["state"] == "complete"), key=lambda one: one["value"])
    rows = [
        [
            str(one["number"]),
            f"{one['value']:.4f}",
            *(_plain(one["settings"][key]) for key in names),
            f"{one['seconds']:.0f}",
        ]
        for one in complete[:TOP]
    ]
    return markdown(["trial", results["metric"], *names.values(), "seconds"], rows)


def costs(results: dict[str, Any]) -> str:
    """How trials ended, and what stopping some of them early saved."""
    trials = results["trials"]
    count = {state: sum(one["state"] == state for one in trials) for state in ("pruned", "diverged", "failed")}
    done = len(trials) - sum(count.values())
    text = f"Of {len(trials)} trials {done} came to their end, {count['pruned']} were stopped early"
    text += "".join(f", {count[state]} {state}" for state in ("diverged", "failed") if count[state])
    steps, full = sum(one["steps"] for one in trials), sum(one["full_steps"] for one in trials)
    text += f". They trained {steps:,} optimizer steps of the {full:,} that all would have had"
    flops, full_flops = ([one[key] for one in trials] for key in ("flops", "full_flops"))
    if full and all(one is not None for one in (*flops, *full_flops)):
        text += (
            f" ({sum(flops):.3g} of {sum(full_flops):.3g} training FLOPs, {1 - sum(flops) / sum(full_flops):.0%} saved)"
        )
    elif full:
        text += f" ({1 - steps / full:.0%} saved)"
    messages = [f"trial {one['number']}: {one['message']}" for one in trials if one["state"] == "failed"]
    return ". ".join([f"{text}, in {sum(one['seconds'] for one in trials) / 60:.1f} minutes", *messages]) + "."


def setup(results: dict[str, Any]) -> str:
    """What was run."""
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [
        f"- configs: {', '.join(f'`{path}`' for path in results['configs'])}; each trial gets {results['budget']} and "
        f"{results['validations']} validations; seeds {seeds}"
    ]
    if len(results["seeds"]) > 1:
        lines.append("- a trial's value is the mean over its seeds; only the first is stopped early")
    if results["prepare"]:
        lines.append(f"- corpus: {_settings(results['prepare'])}")
    if results["overrides"]:
        lines.append(f"- common settings: {_settings(results['overrides'])}")
    lines += [f"- `{key}`: {text}" for key, text in results["space"].items()]
    lines.append(f"- sampler {_settings(results['sampler'])}; pruner {_settings(results['pruner'])}")
    if results["notes"]:
        lines.append(f"- {results['notes']}")
    return "\n".join(lines)


def machine(results: dict[str, Any]) -> str:
    """Hardware and versions."""
    names = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"{hardware_in_words(results['hardware'])}; {names}."


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items())


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _shell(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
