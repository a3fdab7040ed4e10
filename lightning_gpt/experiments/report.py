"""report.md: question, set-up, tables with intervals and a conclusion, made from results.json alone."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.figure import FIGURE_FILE, POSITIONS_FILE, common_points, draw_curves, draw_positions
from lightning_gpt.experiments.intervals import Estimate, estimate
from lightning_gpt.experiments.results import LOAD_PREFIX

KINDS = {"parameters": "parameters", "training_flops": "training FLOPs"}
REPORT_FILE = "report.md"
UNITS = {"val/bits_per_byte": " bits per byte", "val/perplexity": "", "train/perplexity": ""}


def write_report(results: dict[str, Any], directory: Path) -> Path:
    """Writes report.md, curves.png and, for losses along the context, positions.png; shows save_pictures' too.

    Args:
        results: content of results.json.
        directory: where they go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    figures = [path.name for draw in (draw_positions, draw_curves) if (path := draw(results, directory))]
    pictures = (f"{LOAD_PREFIX}{variant}.png" for variant in results["variants"])
    figures += [name for name in pictures if (directory / name).exists()]
    path = directory / REPORT_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(report_text(results, figures), encoding="utf-8")
    os.replace(temporary, path)
    return path


def report_text(results: dict[str, Any], figures: Collection[str] = (FIGURE_FILE,)) -> str:
    """The report in Markdown, with those of the figures that there are."""
    parts = [f"# {results['question']}", f"```\n{results['command']}\n```"]
    if results["expectation"]:
        parts.append(f"Expected: {results['expectation']}")
    parts += ["## Conclusion", conclusion(results), "## Results"]
    for metric in results["metrics"]:
        parts.append(_results_table(results, metric))
    parts.append(
        "Values are those at the end of training; ± is the half-width of a 95% Student t interval over seeds. "
        "Differences to the baseline are taken between runs of one seed (same initial weights where shapes agree, "
        "same order of data), which is what makes them sharper than the means. Intervals are not corrected for the "
        "number of comparisons."
    )
    band = "mean of the seeds, band from least to largest"
    if POSITIONS_FILE in figures:
        parts.append(f"![Loss along the context: {band}]({POSITIONS_FILE})")
    if FIGURE_FILE in figures:
        parts.append(f"![{results['curve']} over training: {band}]({FIGURE_FILE})")
    for variant in results["variants"]:
        if (name := f"{LOAD_PREFIX}{variant}.png") in figures:
            parts.append(f"Loads of the experts at the end, `{variant}`, first seed:\n\n![{variant}]({name})")
    parts += ["## Set-up", _setup(results), "## Cost", _cost_table(results), _machine(results)]
    return "\n\n".join(parts) + "\n"


def variant_values(results: dict[str, Any], variant: str, metric: str) -> dict[int, float]:
    """seed -> final value of the runs that came to their end."""
    return {
        cell["seed"]: cell["final"][metric]
        for cell in results["cells"]
        if cell["variant"] == variant and metric in cell["final"]
    }


def reference(results: dict[str, Any], variant: str) -> str:
    """What a variant is compared with: the first, or in a ladder the one before it."""
    names = list(results["variants"])
    return names[max(0, names.index(variant) - 1)] if _is_ladder(results) else names[0]


def _is_ladder(results: dict[str, Any]) -> bool:
    return results.get("against") == "previous"


def paired_difference(results: dict[str, Any], variant: str, metric: str) -> Estimate | None:
    """Variant minus its reference over the seeds that both finished; None: there is none."""
    ours = variant_values(results, variant, metric)
    theirs = variant_values(results, reference(results, variant), metric)
    both = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in both]) if both else None


def verdict(difference: Estimate | None) -> str:
    """In words, where smaller is better."""
    if difference is None:
        return "no common run"
    if difference.half_width is None:
        return "one seed: no verdict"
    return {-1: "better", 0: "not distinguishable", 1: "worse"}[difference.sign]


def largest_curve_difference(results: dict[str, Any], variant: str) -> tuple[float, int] | None:
    """Largest absolute difference of the curve to the baseline's, over all seeds and steps, and the steps compared."""
    baseline = next(iter(results["variants"]))
    by_seed = {(cell["variant"], cell["seed"]): cell for cell in results["cells"]}
    largest, compared = 0.0, 0
    for (name, seed), cell in by_seed.items():
        if name == variant and (baseline, seed) in by_seed:
            steps, (ours, theirs) = common_points([cell, by_seed[baseline, seed]])
            compared += len(steps)
            largest = max([largest, *(abs(a - b) for a, b in zip(ours, theirs))])
    return (largest, compared) if compared else None


def conclusion(results: dict[str, Any]) -> str:
    """What the numbers say, in sentences."""
    metric, (baseline, *others) = results["metrics"][0], results["variants"]
    if results["identical_within"] is not None:
        return _conclusion_of_identity(results, baseline, others)
    unit = UNITS.get(metric, " nats per token")
    values = {name: list(variant_values(results, name, metric).values()) for name in results["variants"]}
    sentences = []
    if values[baseline]:
        sentences.append(f"The baseline `{baseline}` ends at {estimate(values[baseline]).text()}{unit} ({metric}).")
    for name in others:
        difference = paired_difference(results, name, metric)
        if difference is not None:
            after = f" after `{reference(results, name)}`" if _is_ladder(results) else ""
            sentences.append(f"`{name}`{after}: {verdict(difference)} ({difference.text(signed=True)}).")
    ranked = sorted((sum(v) / len(v), name) for name, v in values.items() if v)
    if len(ranked) > 1:
        sentences.append(f"Lowest mean: `{ranked[0][1]}`.")
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        sick = sum(cell["status"] == "diverged" for cell in cells)
        if sick:
            sentences.append(f"{sick} of {len(cells)} runs of `{name}` diverged and have no value.")
    return " ".join(sentences)


def _conclusion_of_identity(results: dict[str, Any], baseline: str, others: list[str]) -> str:
    tolerance, sentences = results["identical_within"], []
    for name in others:
        found = largest_curve_difference(results, name)
        if found is None:
            sentences.append(f"`{name}` has no step in common with `{baseline}`.")
            continue
        judged = "the same computation as" if found[0] <= tolerance else "NOT the same computation as"
        sentences.append(
            f"`{name}` is {judged} `{baseline}`: over {found[1]:,} steps {results['curve']} differs by at most "
            f"{found[0]:.2g} nats (allowed: {tolerance:g})."
        )
    return " ".join(sentences)


def _results_table(results: dict[str, Any], metric: str) -> str:
    baseline = next(iter(results["variants"]))
    rows = []
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        values = list(variant_values(results, name, metric).values())
        sick = sum(cell["status"] == "diverged" for cell in cells)
        difference = None if name == baseline else paired_difference(results, name, metric)
        rows.append(
            [
                f"`{name}`",
                f"{len(values)}" + (f" (+{sick} diverged)" if sick else ""),
                estimate(values).text() if values else "-",
                "baseline" if name == baseline else difference.text(signed=True) if difference else "-",
                "" if name == baseline else verdict(difference),
            ]
        )
    minus = "minus the one before, paired" if _is_ladder(results) else f"minus `{baseline}`, paired"
    return _table([metric, "n", "mean", minus, "verdict"], rows)


def _setup(results: dict[str, Any]) -> str:
    seeds = sorted({cell["seed"] for cell in results["cells"]})
    lines = [
        f"- configs: {', '.join(f'`{path}`' for path in results['configs'])}; each run gets {results['budget']}; "
        f"seeds {', '.join(map(str, seeds))}"
    ]
    for kind, share in results.get("equal", {}).items():
        within = f" within {share:.1%}" if share else ""
        lines.append(f"- checked before the runs: {KINDS[kind]} are equal{within}")
    if results["overrides"]:
        lines.append(f"- common settings: {_settings(results['overrides'])}")
    lines += [f"- `{name}`: {_settings(settings)}" for name, settings in results["variants"].items()]
    if results["notes"]:
        lines.append(f"- {results['notes']}")
    text = "\n".join(lines)
    distinct = {repr(corpus) for corpus in results["corpora"].values()}
    shown = results["corpora"] if len(distinct) > 1 else dict([next(iter(results["corpora"].items()))])
    rows = [
        [
            f"`{name}`" if len(distinct) > 1 else "all",
            corpus["name"],
            corpus["scheme"],
            f"{corpus['vocab_size']:,}",
            f"{corpus['train_tokens']:,}",
            f"{corpus['val_tokens']:,}",
            f"{corpus['val_bytes_per_token']:.3f}",
            _losses(corpus),
        ]
        for name, corpus in shown.items()
    ]
    heading = ["variant", "corpus", "tokenizer", "ids", "train tokens", "val tokens", "bytes/token", "text lost"]
    return f"{text}\n\n{_table(heading, rows)}"


def _losses(corpus: dict[str, Any]) -> str:
    """Whether the tokens say all that the text says: bits per byte flatter a tokenizer that drops characters."""
    if corpus["unknown_tokens"]:
        return f"{corpus['unknown_tokens']:,} unknown tokens: its bits per byte flatter it"
    return "none" if corpus["lossless"] else "no unknown token, but decoding may not restore the text exactly"


def _cost_table(results: dict[str, Any]) -> str:
    rows = []
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        rows.append(
            [
                f"`{name}`",
                _parameters(cells[0]),
                f"{cells[0]['steps']:,}",
                f"{cells[0]['tokens']:,}" if cells[0]["tokens"] else "-",
                f"{cells[0]['training_flops']:.3g}" if cells[0]["training_flops"] else "-",
                f"{_mean(cells, 'tokens_per_second'):,.0f}",
                f"{_mean(cells, 'seconds'):.1f}",
                f"{_mean(cells, 'peak_memory_bytes') / 2**20:,.0f}",
            ]
        )
    costs = ["tokens", "training FLOPs", "tokens/s", "seconds a run", "peak memory, MiB"]
    return _table(["variant", "parameters", "steps", *costs], rows)


def _parameters(cell: dict[str, Any]) -> str:
    total, active = cell.get("parameters"), cell.get("active_parameters")
    if total is None:
        return "-"
    return f"{total:,}" + (f" ({active:,} active)" if active != total else "")


def _mean(cells: list[dict[str, Any]], key: str) -> float:
    values = [cell[key] for cell in cells if cell[key] is not None]
    return sum(values) / len(values) if values else float("nan")


def _machine(results: dict[str, Any]) -> str:
    machine, versions = results["hardware"], results["versions"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    threads = f", {machine['threads']} thread(s) a run" if "threads" in machine else ""
    resumed = sum(cell["attempts"] > 1 for cell in results["cells"])
    total = sum(cell["seconds"] for cell in results["cells"])
    text = (
        f"{machine['cpu']}, {machine['cores']} core(s){threads}{gpus}; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}. All {len(results['cells'])} runs "
        f"took {total / 60:.1f} minutes; seconds include the start of the process and the validations."
    )
    return text + (
        f" {resumed} run(s) were interrupted: their seconds are those of the last attempt." if resumed else ""
    )


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "as the configs say"


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
