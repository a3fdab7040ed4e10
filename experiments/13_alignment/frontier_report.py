"""Figure, results.json and report.md of frontier.py."""

import json
import statistics
from pathlib import Path

COLUMNS = {
    "kl": "KL",
    "reward": "reward",
    "gap": "below the frontier",
    "outside": "probability elsewhere",
    "ended": "ended",
}


def half_width(values: list[float]) -> float | None:
    """Of a 95% t interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


def draw(path: Path, world, rows: list[dict]) -> None:
    """Points of every run, means joined by method, and the frontier where it is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    curve = world.curve()
    if curve is not None:
        axes.plot(*curve, color="black", linewidth=1, label="exact frontier")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        color, mine = f"C{number}", sorted((row for row in rows if row["method"] == method), key=lambda row: row["kl"])
        axes.plot(
            [r["kl"] for r in mine],
            [r["reward"] for r in mine],
            "o-",
            color=color,
            markersize=4,
            linewidth=0.8,
            label=method,
        )
        runs = [one for row in mine for one in row["runs"]]
        axes.plot(
            [one["kl"] for one in runs], [one["reward"] for one in runs], ".", color=color, alpha=0.35, markersize=4
        )
    axes.set(xlabel=world.kl_label, ylabel=world.reward_label)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: list[dict]) -> str:
    """Markdown, ± half-width of a 95% interval over seeds."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| method | knob | n | " + " | ".join(COLUMNS[name] for name in names) + " |"]
    lines.append("|---|---|---|" + "---|" * len(names))
    for row in rows:
        cells = []
        for name in names:
            if name not in row:
                cells.append("")
                continue
            width = half_width([one[name] for one in row["runs"]])
            cells.append(f"{row[name]:.3f}" + ("" if width is None else f" ± {width:.3f}"))
        lines.append(
            f"| {row['method']} | {row['knob']} | {len(row['runs']) or row['of']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def conclusion(rows: list[dict]) -> str:
    """What the numbers say."""
    if any("gap" in row for row in rows):
        gaps = {}
        for row in rows:
            gaps.setdefault(row["method"], []).append(row["gap"])
        order = sorted(gaps, key=lambda method: statistics.mean(gaps[method]))
        said = ", ".join(
            f"{method} {statistics.mean(gaps[method]):.3f} (largest {max(gaps[method]):.3f})" for method in order
        )
        text = f"Mean distance below the exact frontier at the KL divergence spent: {said}."
        lost: dict[str, list[float]] = {}
        for row in rows:
            lost.setdefault(row["method"], []).append(row.get("outside", 0.0))
        astray = [f"{method} {min(of):.0%} to {max(of):.0%}" for method, of in lost.items() if max(of) > 0.1]
        if astray:
            text += (
                f" Of all probability {' and '.join(astray)} has gone to answers that are none of these texts, which "
                "neither the pairs nor the reference contain: the loss sees differences alone, and both answers of a "
                "pair may become less likely. KL and reward are those of the texts among themselves."
            )
        return text
    best = {}
    for row in rows:
        if row["method"] not in best or row["reward"] > best[row["method"]]["reward"]:
            best[row["method"]] = row
    order = sorted(best.values(), key=lambda row: -row["reward"])
    said = "; ".join(f"{row['method']} {row['knob']}: {row['reward']:.3f} at {row['kl']:.1f} nats" for row in order)
    return f"Highest mean reward of each method: {said}."


def write_report(directory: Path, world, rows: list[dict], hardware: str) -> None:
    """All three files."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = rows + world.further()
    command = f"python experiments/13_alignment/frontier.py {world.name}"
    results = {"question": world.question, "command": command, "hardware": hardware, "rows": rows}
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(directory / "frontier.png", world, rows)
    text = f"# {world.question}\n\n    {command}\n\n{conclusion(rows)}\n\n![Reward against KL](frontier.png)\n\n"
    seeds = rows[0]["seeds"]
    if len(seeds) > 1:
        text += f"Means over seeds {', '.join(map(str, seeds))}, ± half-width of a 95% t interval. {hardware}.\n\n"
    else:
        text += f"Seed {seeds[0]} alone: one run each, no interval. {hardware}.\n\n"
    (directory / "report.md").write_text(text + table(rows) + "\n")
