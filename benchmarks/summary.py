"""Medians and ratios of the training measurements."""

from statistics import median

from benchmarks.machine import machine_line
from benchmarks.measure import CONTESTANTS, PEERS
from benchmarks.report import markdown_table
from benchmarks.request import SHAPES


def summarize(measurements: list[dict]) -> dict:
    """size -> {"rates": setting -> contestant -> {"median", "rounds"}, "ratio": ...}.

    A process counts as the median of its windows, a cell as the median of its processes. The ratio compares our
    Trainer at its best setting with the fastest peer at its own best; its spread is over rounds.
    """
    cells: dict[tuple[str, str, str], list[float]] = {}
    for row in measurements:
        if row.get("tokens_per_second"):
            key = (row["size"], row["setting"], row["contestant"])
            cells.setdefault(key, []).append(median(row["tokens_per_second"]))
    summary: dict = {}
    for (size, setting, name), rounds in cells.items():
        rates = summary.setdefault(size, {"rates": {}})["rates"]
        rates.setdefault(setting, {})[name] = {"median": median(rounds), "rounds": rounds}
    for entry in summary.values():
        entry["ratio"] = _ratio(entry["rates"])
    return summary


def _best(rates: dict, names: tuple[str, ...]) -> tuple[str, str, dict] | None:
    found = [(name, setting, row[name]) for setting, row in rates.items() for name in names if name in row]
    return max(found, key=lambda one: one[2]["median"], default=None)


def _ratio(rates: dict) -> dict | None:
    ours, peer = _best(rates, ("ours",)), _best(rates, PEERS)
    if not ours or not peer:
        return None
    by_round = [mine / theirs for mine, theirs in zip(ours[2]["rounds"], peer[2]["rounds"])]
    return {
        "ours_setting": ours[1],
        "ours": ours[2]["median"],
        "peer": peer[0],
        "peer_setting": peer[1],
        "peer_rate": peer[2]["median"],
        "ratio": ours[2]["median"] / peer[2]["median"],
        "lowest": min(by_round),
        "highest": max(by_round),
    }


def markdown(results: dict) -> str:
    """The report."""
    names = [name for name in CONTESTANTS if any(row["contestant"] == name for row in results["measurements"])]
    settings = results["settings"]
    parts = [
        "# Training, tokens/s",
        machine_line(results["machine"]),
        f"Medians of {settings['rounds']} interleaved processes, {settings['windows']} windows each; "
        f"{settings['optimizer']}.",
    ]
    for size, entry in results["summary"].items():
        headings = ["setting", *(CONTESTANTS[name] for name in names), "Trainer / bare"]
        rows = []
        for setting, row in entry["rates"].items():
            rate = {name: row[name]["median"] for name in names if name in row}
            kept = f"{rate['ours'] / rate['ours_bare']:.1%}" if {"ours", "ours_bare"} <= rate.keys() else "-"
            rows.append([setting, *(f"{rate[name]:,.0f}" if name in rate else "-" for name in names), kept])
        parts += [f"## {SHAPES[size]}", markdown_table(headings, rows)]
        if ratio := entry["ratio"]:
            parts.append(
                f"Ours at its best ({ratio['ours_setting']}, {ratio['ours']:,.0f}) against the fastest peer at its "
                f"best ({CONTESTANTS[ratio['peer']]}, {ratio['peer_setting']}, {ratio['peer_rate']:,.0f}): "
                f"**{ratio['ratio']:.2f}x** (rounds {ratio['lowest']:.2f} to {ratio['highest']:.2f})."
            )
    failed = sorted(
        {(r["size"], r["setting"], r["contestant"], r["error"]) for r in results["measurements"] if "error" in r}
    )
    if failed:
        parts.append(
            "Failed:\n" + "\n".join(f"- {size}, {setting}, {name}: {why}" for size, setting, name, why in failed)
        )
    return "\n\n".join(parts)
