"""report.md: question, conclusion, tables with intervals and verdicts, figures; made from results.json alone."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.comparisons import (
    comparisons_of,
    is_ladder,
    power_of,
    reference,
    variant_values,
)
from lightning_gpt.experiments.fewer_seeds import FIGURE_FILE as FEWER_FILE
from lightning_gpt.experiments.fewer_seeds import VERDICTS, draw_fewer_seeds, fewer_seeds_rows
from lightning_gpt.experiments.figure import FIGURE_FILE, POSITIONS_FILE, common_points, draw_curves, draw_positions
from lightning_gpt.experiments.levels_figure import LEVELS_FILE, draw_levels
from lightning_gpt.experiments.metrics import larger_is_better, unit_of
from lightning_gpt.experiments.results import FOUND_PREFIX, LOAD_PREFIX, PICTURES
from lightning_gpt.experiments.scatter_figure import SCATTER_FILE, draw_scatter
from lightning_gpt.experiments.statistics import estimate
from lightning_gpt.experiments.tables import (
    cost_table,
    machine,
    markdown,
    overview_table,
    p_text,
    results_table,
    setup,
    wall_time_table,
    wall_time_warning,
)

REPORT_FILE = "report.md"
HOW_TO_READ = (
    "± is the half-width of a 95% Student t interval over seeds, beside the "
    "standard deviation. Differences are taken between runs of one seed (same initial weights where shapes agree, same "
    "order of data), which is what makes them sharper than the means; their bootstrap interval (BCa, 95%) is too "
    "narrow for so few values and is there to compare. Effect is Hedges' g of the paired differences. p is that of the "
    "paired t test, corrected for the number of comparisons in the table (Holm); a verdict needs p < 0.05, so an "
    "interval that just excludes zero may be no verdict."
)
HOW_TO_READ_MEASUREMENTS = (
    "± is the half-width of a 95% Student t interval over the repetitions (seeds), beside the standard deviation. "
    "Differences are taken between measurements of one seed, which run one after the other; their bootstrap interval "
    "(BCa, 95%) is too narrow for so few values and is there to compare. Effect is Hedges' g of paired differences. "
    "p is that of the paired t test, corrected for the number of comparisons in the table (Holm); a verdict needs "
    "p < 0.05."
)
HOW_FEWER_WERE_READ = (
    "Every choice of so many of the seeds (10,000 random ones where there are more) is read as an experiment of its "
    "own; the table tells how often it came to which verdict. Power is how often the t test should find a true "
    "difference of the mean and deviation that all seeds together have. Choices overlap, so the shares of the larger "
    "ones are nearer to the verdict of all than fresh runs would be. Found unpaired: how often Welch's t test, in "
    "either direction, finds the difference between as many runs whose seeds differ."
)
HOW_TIME_WAS_KEPT = (
    "Short runs before the first one measured what a step takes; that fixed the number of steps, the same for all "
    "seeds and kept when the experiment goes on after a stop. Seconds are those of training alone, by the speed that "
    "each run logged: start, validations and checkpoints are not counted, what else the machine did meanwhile is."
)


def write_report(results: dict[str, Any], directory: Path) -> Path:
    """Writes report.md, curves.png and what other figures the results make; shows save_pictures' too.

    Args:
        results: content of results.json.
        directory: where they go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    figures = [
        path.name
        for draw in (draw_levels, draw_positions, draw_curves, draw_scatter, draw_fewer_seeds)
        if (path := draw(results, directory))
    ]
    pictures = (f"{prefix}{variant}.png" for prefix in PICTURES.values() for variant in results["variants"])
    figures += [name for name in pictures if (directory / name).exists()]
    path = directory / REPORT_FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(report_text(results, figures), encoding="utf-8")
    os.replace(temporary, path)
    return path


def report_text(results: dict[str, Any], figures: Collection[str] = (FIGURE_FILE,)) -> str:
    """The report in Markdown, with those of the figures that there are."""
    parts = [f"# {results['question']}", f"```\n{results['command']}\n```"]
    if results["expectation"]:
        parts.append(f"Expected: {results['expectation']}")
    parts += ["## Conclusion", conclusion(results), "## Results"]
    measured, axis = results.get("measure"), results.get("axis")
    when = "those at the end of training" if not measured else f"those of the last {axis}" if axis else "as measured"
    if measured:
        parts.append(overview_table(results))
    for metric in results["metrics"] if _compares(results) or not measured else ():
        parts.append(results_table(results, metric))
    how = HOW_TO_READ_MEASUREMENTS if measured else HOW_TO_READ
    parts.append(f"Values are {when}{'; ' + how if _compares(results) else '.'}")
    band = "mean of the seeds, band from least to largest"
    if LEVELS_FILE in figures:
        parts.append(f"![Over what variants differ in: seeds, means and their 95% intervals]({LEVELS_FILE})")
    if POSITIONS_FILE in figures:
        parts.append(f"![Loss along the context: {band}]({POSITIONS_FILE})")
    if FIGURE_FILE in figures:
        parts.append(f"![{results['curve']} over {axis or 'training'}: {band}]({FIGURE_FILE})")
    if SCATTER_FILE in figures:
        over = " over ".join(reversed(results["scatter"]))
        parts.append(f"![{over}: means of the variants and their 95% intervals]({SCATTER_FILE})")
    for variant in results["variants"]:
        if (name := f"{LOAD_PREFIX}{variant}.png") in figures:
            parts.append(f"Loads of the experts at the end, `{variant}`, first seed:\n\n![{variant}]({name})")
    for variant in results["variants"]:
        if (name := f"{FOUND_PREFIX}{variant}.png") in figures:
            said = "captions of the validation set and the pictures found for them, the right one framed"
            parts.append(f"`{variant}`, first seed: {said}.\n\n![{variant}]({name})")
    if results.get("fewer_seeds"):
        rows = fewer_seeds_rows(results)
        heading = ["variant", "seeds", *VERDICTS, "power", "found unpaired"]
        parts += ["## With fewer seeds", markdown(heading, rows), HOW_FEWER_WERE_READ]
        if FEWER_FILE in figures:
            parts.append(f"![Verdicts over the number of seeds]({FEWER_FILE})")
    if table := wall_time_table(results):
        parts += ["## Wall time", table, HOW_TIME_WAS_KEPT]
    parts += ["## Set-up", setup(results), "## Cost", cost_table(results), machine(results)]
    return "\n\n".join(parts) + "\n"


def _compares(results: dict[str, Any]) -> bool:
    return results.get("against") != "none" and len(results["variants"]) > 1


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
    """What the numbers say, in one paragraph."""
    metric, (baseline, *others) = results["metrics"][0], results["variants"]
    if results["identical_within"] is not None:
        return _conclusion_of_identity(results, baseline, others)
    values = {name: list(variant_values(results, name, metric).values()) for name in results["variants"]}
    sentences = []
    if values[baseline] and _compares(results):
        found, ends = estimate(values[baseline]), "has" if results.get("measure") else "ends at"
        sentences.append(
            f"The baseline `{baseline}` {ends} {found.text()}{unit_of(metric, results)} ({metric}, n = {found.n})."
        )
    for name, one in comparisons_of(results, metric).items():
        after = f" after `{reference(results, name)}`" if is_ladder(results) else ""
        p = f", p = {p_text(one.p_holm)}".replace("= <", "< ") if one.p_holm is not None else ""
        sentences.append(f"`{name}`{after}: {one.verdict} ({one.difference.text(signed=True)}{p}).")
    ranked = sorted((sum(v) / len(v), name) for name, v in values.items() if v)
    if len(ranked) > 1:
        most = larger_is_better(results, metric)
        value, name = ranked[-1 if most else 0]
        what = "mean" if _compares(results) else metric
        sentences.append(f"{'Highest' if most else 'Lowest'} {what}: `{name}`, {value:.4f}.")
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        sick = sum(cell["status"] == "diverged" for cell in cells)
        if sick:
            sentences.append(f"{sick} of {len(cells)} runs of `{name}` diverged and have no value.")
    sentences += [wall_time_warning(results), power_of(results, metric)]
    return " ".join(filter(None, sentences))


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
