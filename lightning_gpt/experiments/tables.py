"""The tables of a report: results, set-up, cost, machine."""

import math
from typing import Any

from lightning_gpt.experiments.comparisons import comparisons_of, is_ladder, variant_values
from lightning_gpt.experiments.machine import hardware_in_words
from lightning_gpt.experiments.statistics import Comparison, Estimate, estimate

UNEQUAL = 0.1
"""Variants whose runs missed the foretold seconds by shares that differ by more were not given equal time."""
KINDS = {
    "parameters": "parameters",
    "training_flops": "training FLOPs",
    "tokens": "tokens",
    "seconds": "foretold seconds of training",
}


def results_table(results: dict[str, Any], metric: str) -> str:
    """A row a variant: values at the end of training, and the comparison with its reference."""
    compared = comparisons_of(results, metric)
    baseline, rows = next(iter(results["variants"])), []
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        values = list(variant_values(results, name, metric).values())
        sick = sum(cell["status"] == "diverged" for cell in cells)
        found = estimate(values) if values else None
        row = [
            f"`{name}`",
            f"{len(values)}" + (f" (+{sick} diverged)" if sick else ""),
            found.text() if found else "-",
            f"{found.deviation:.4f}" if found and found.deviation is not None else "-",
        ]
        if results.get("against") != "none":
            row += ["baseline", "", "", "", ""] if name == baseline else _comparison(compared.get(name))
        rows.append(row)
    heading = [metric, "n", "mean", "deviation"]
    if results.get("against") != "none":
        minus = "minus the one before, paired" if is_ladder(results) else f"minus `{baseline}`, paired"
        heading += [minus, "bootstrap", "effect", "p (Holm)", "verdict"]
    return markdown(heading, rows)


def overview_table(results: dict[str, Any]) -> str:
    """A row a variant, a column a metric: means with their intervals."""
    rows = []
    for name in results["variants"]:
        found = [list(variant_values(results, name, metric).values()) for metric in results["metrics"]]
        rows.append([f"`{name}`", *(rounded(estimate(values)) if values else "-" for values in found)])
    return markdown(["variant", *results["metrics"]], rows)


def rounded(found: Estimate) -> str:
    """As Estimate.text, in as many digits as the size of the number calls for: 13.93 ± 0.12, 142,310 ± 12."""
    digits = 0 if found.mean == 0 else max(0, 3 - math.floor(math.log10(abs(found.mean))))
    mean = f"{found.mean:,.{digits}f}"
    return mean if not found.half_width else f"{mean} ± {found.half_width:,.{digits}f}"


def _comparison(found: Comparison | None) -> list[str]:
    if found is None:
        return ["-", "-", "-", "-", "no common run"]
    interval = found.difference.bootstrap
    return [
        found.difference.text(signed=True),
        f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "-",
        f"{found.effect:+.1f}" if found.effect is not None else "-",
        p_text(found.p_holm) if found.p_holm is not None else "-",
        found.verdict,
    ]


def p_text(p: float) -> str:
    """Two digits, at least 0.0001."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def setup(results: dict[str, Any]) -> str:
    """What was run, and on which text."""
    seeds = sorted({cell["seed"] for cell in results["cells"]})
    first = (
        f"- measured by `{results['measure']}`; seeds {', '.join(map(str, seeds))}"
        if results.get("measure")
        else f"- configs: {', '.join(f'`{path}`' for path in results['configs'])}; each run gets {results['budget']}; "
        f"seeds {', '.join(map(str, seeds))}"
    )
    lines = [first]
    for kind, share in results.get("equal", {}).items():
        within = f" within {share:.1%}" if share else ""
        lines.append(f"- checked before the runs: {KINDS[kind]} are equal{within}")
    if results["overrides"]:
        lines.append(f"- common settings: {_settings(results['overrides'])}")
    lines += [f"- `{name}`: {_settings(settings)}" for name, settings in results["variants"].items()]
    if results["notes"]:
        lines.append(f"- {results['notes']}")
    lines += [f"- needs `{path}`, made by `{command}`" for path, command in results.get("needs", {}).items()]
    tables = [one for one in (corpora_table(results), files_table(results)) if one]
    return "\n\n".join(["\n".join(lines), *tables])


def _told_once(results: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    """What variants have of their own; under "all" where it is the same for all."""
    if len(of) == len(results["variants"]) and len({repr(one) for one in of.values()}) == 1:
        return {"all": next(iter(of.values()))}
    return {f"`{name}`": one for name, one in of.items()}


def corpora_table(results: dict[str, Any]) -> str:
    """A row a variant, or one for all: the text, and how it was cut; "" where there is no corpus."""
    rows = [
        [
            name,
            corpus["name"],
            corpus["scheme"],
            f"{corpus['vocab_size']:,}",
            f"{corpus['train_tokens']:,}",
            f"{corpus['val_tokens']:,}",
            f"{corpus['val_bytes_per_token']:.3f}",
            _losses(corpus),
        ]
        for name, corpus in _told_once(results, results["corpora"]).items()
    ]
    heading = ["variant", "corpus", "tokenizer", "ids", "train tokens", "val tokens", "bytes/token", "text lost"]
    return markdown(heading, rows) if rows else ""


def files_table(results: dict[str, Any]) -> str:
    """A row a file that settings name: rows to learn from, models to start from; "" where there are none."""
    rows = [
        [name, f"`{one['setting'].replace('.init_args', '')}`", f"`{one['path']}`", *_size(one)]
        for name, files in _told_once(results, results.get("files", {})).items()
        for one in files
    ]
    return markdown(["variant", "setting", "file", "rows or files", "bytes", "sha256"], rows) if rows else ""


def _size(file: dict[str, Any]) -> list[str]:
    if file["sha256"] is None:
        return ["-", "-", "on the hub"]
    counted = [f"{file['rows']:,} rows"] if file["rows"] is not None else []
    if not counted or file["files"] > 1:
        counted.append(f"{file['files']:,} file{'s' if file['files'] > 1 else ''}")
    return [", ".join(counted), f"{file['bytes']:,}", file["sha256"][:12]]


def _losses(corpus: dict[str, Any]) -> str:
    """Whether the tokens say all that the text says: bits per byte flatter a tokenizer that drops characters."""
    if corpus["unknown_tokens"]:
        return f"{corpus['unknown_tokens']:,} unknown tokens: its bits per byte flatter it"
    return "none" if corpus["lossless"] else "no unknown token, but decoding may not restore the text exactly"


def cost_table(results: dict[str, Any]) -> str:
    """A row a variant: size, work, speed, memory."""
    rows, spent = [], ["seconds a run", "peak memory, MiB"]
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        last = [_mean(cells, "seconds", ",.1f"), _mean(cells, "peak_memory_bytes", scale=2**-20)]
        if results.get("measure"):
            rows.append([f"`{name}`", *last])
            continue
        rows.append(
            [
                f"`{name}`",
                _parameters(cells[0]),
                f"{cells[0]['steps']:,}",
                f"{cells[0]['tokens']:,}" if cells[0]["tokens"] else "-",
                f"{cells[0]['training_flops']:.3g}" if cells[0]["training_flops"] else "-",
                _mean(cells, "tokens_per_second"),
                *last,
            ]
        )
    work = [] if results.get("measure") else ["parameters", "steps", "tokens", "training FLOPs", "tokens/s"]
    return markdown(["variant", *work, *spent], rows)


def wall_time_table(results: dict[str, Any]) -> str:
    """A row a variant: the step as measured, the steps that it fixed, what they took; "" where nobody asked."""
    rows = []
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name]
        if not cells[0].get("step_seconds"):
            continue
        took = [cell["training_seconds"] for cell in cells if cell["training_seconds"] and cell["status"] == "done"]
        foretold = cells[0]["foretold_seconds"]
        mean = sum(took) / len(took) if took else None
        rows.append(
            [
                f"`{name}`",
                f"{1000 * cells[0]['step_seconds']:.4g}",
                f"{cells[0]['steps']:,}",
                f"{foretold:.1f}",
                f"{mean:.1f}" if took else "-",
                f"{min(took):.1f} to {max(took):.1f}" if took else "-",
                f"{mean / foretold - 1:+.1%}" if took else "-",
            ]
        )
    heading = ["variant", "ms a step, measured before", "steps", "foretold s", "trained s, mean", "range", "off by"]
    return markdown(heading, rows) if rows else ""


def wall_time_warning(results: dict[str, Any]) -> str:
    """A sentence where the runs did not take the time that made them equal; "" where they did, or nobody asked."""
    ratios = {}
    for name in results["variants"]:
        cells = [cell for cell in results["cells"] if cell["variant"] == name and cell["status"] == "done"]
        took = [cell["training_seconds"] / cell["foretold_seconds"] for cell in cells if cell.get("foretold_seconds")]
        if took:
            ratios[name] = sum(took) / len(took)
    if not ratios or max(ratios.values()) <= (1 + UNEQUAL) * min(ratios.values()):
        return ""
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    return (
        f"In wall time they were not equal: `{low}` took {ratios[low]:.2f} times what was foretold, `{high}` "
        f"{ratios[high]:.2f} times (other work on the machine). The verdicts hold for the steps, not for the seconds."
    )


def _parameters(cell: dict[str, Any]) -> str:
    total, active = cell.get("parameters"), cell.get("active_parameters")
    if total is None:
        return "-"
    return f"{total:,}" + (f" ({active:,} active)" if active != total else "")


def _mean(cells: list[dict[str, Any]], key: str, form: str = ",.0f", scale: float = 1.0) -> str:
    values = [cell[key] for cell in cells if cell[key] is not None]
    return f"{scale * sum(values) / len(values):{form}}" if values else "-"


def machine(results: dict[str, Any]) -> str:
    """Hardware, versions, total time, and a digest of all settings."""
    hardware, versions = results["hardware"], results["versions"]
    resumed = sum(cell["attempts"] > 1 for cell in results["cells"])
    total = sum(cell["seconds"] for cell in results["cells"])
    validations = "" if results.get("measure") else " and the validations"
    text = (
        f"{hardware_in_words(hardware)}; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}. All {len(results['cells'])} runs "
        f"took {total / 60:.1f} minutes; seconds include the start of the process{validations}."
    )
    if resumed:
        text += f" {resumed} run(s) were interrupted: their seconds are those of the last attempt."
    if results.get("config_hash"):
        text += f" Settings, corpora and version of all runs: sha256 {results['config_hash'][:16]}."
    return text


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "as the configs say"


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    """A table with the first column to the left and the others to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
