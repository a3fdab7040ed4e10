"""report.md, results.json and pictures of a chain that capstone.py has been through.

python experiments/capstone/report.py runs/capstone --out experiments/capstone
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from capstone import STAGES
from scipy.stats import beta

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.experiments.machine import hardware, hardware_in_words, versions

MODELS = {
    "rule": "no model: first sentence of the nearest passage",
    "smollm2": "SmolLM2-135M-Instruct, from 4 bits",
    "adapt": "after reading on",
    "sft": "after SFT",
    "dpo": "after DPO",
    "int8": "in 8 bits, as served",
    "retrieved": "as served, with its own retrieval",
}
KINDS = ("describe", "find", "call", "absent")
DASHBOARD = "\n![Grafana's dashboard of that time, drawn from Prometheus by preview.py](dashboard.png)\n"
BAR = 0.8
"""Share of the baseline's quality that must be left."""


def interval(scores: list[float]) -> float:
    """Half-width of the mean's 95% interval over questions."""
    return 1.96 * float(np.std(scores, ddof=1)) / math.sqrt(len(scores))


def ratio(new: list[float], old: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Of two means over the same questions, with its 95% bootstrap interval."""
    generator = np.random.default_rng(seed)
    a, b = np.array(new), np.array(old)
    drawn = generator.integers(0, len(a), (4000, len(a)))
    low, high = np.quantile(a[drawn].mean(1) / b[drawn].mean(1), [0.025, 0.975])
    return float(a.mean() / b.mean()), float(low), float(high)


def read(folder: Path) -> dict[str, Any]:
    """All that the stages left."""
    short = folder.name.endswith("_short")
    runs = {stage: folder.parent / f"{folder.name}_{stage}" for stage in ("adapt", "sft", "dpo")}
    curves = {stage: newest(run) for stage, run in runs.items()}
    curves["adapt"] = newest(folder.parent / "capstone_base") + curves["adapt"]  # what it begins with is its step 0
    corpus = json.loads(Path("data/technical_docs/meta.json").read_text())["splits"]["train"]
    pairs = Path("data/documentation/pairs_short" if short else "data/documentation/pairs")
    data = {
        "documents": corpus["documents"],
        "tokens": corpus["tokens"],
        "passages": lines(Path("data/documentation/passages.jsonl")),
        "questions to learn from": lines(Path("data/documentation/train.jsonl")),
        "questions for the test": lines(Path("data/documentation/test.jsonl")),
        "pairs": lines(pairs / "train.jsonl") + lines(pairs / "test.jsonl"),
    }
    done = json.loads((folder / "done.json").read_text())
    return {
        "short": short,
        "data": data,
        "seconds": {stage.name: sum(done[command] for command in stage.typed(short)) for stage in STAGES},
        "kinds": [json.loads(line)["kind"] for line in Path("data/documentation/test.jsonl").read_text().splitlines()],
        "answers": {name: json.loads((folder / f"answers_{name}.json").read_text()) for name in MODELS},
        "general": {
            name: json.loads((folder / f"general_{name}" / "results.json").read_text())["results"]
            for name in ("smollm2", "int8")
        },
        "service": json.loads((folder / "service" / "service.json").read_text()),
        "curves": curves,
        "hardware": hardware(),
        "versions": versions(),
    }


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def newest(run: Path) -> list[dict[str, float]]:
    """Metrics of a run's last version."""
    last = max(run.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    return read_metrics(last / "metrics.jsonl")


def validation(rows: list[dict[str, float]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric."""
    return [(int(row["step"]), row[name]) for row in rows if name in row]


def general_mean(results: dict[str, dict]) -> float:
    return float(np.mean([one["value"] for one in results.values()]))


def bar(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is asked, the aim, what was found, whether it is met."""
    answers, service = found["answers"], found["service"]
    kept, low, high = ratio(answers["int8"]["scores"], answers["dpo"]["scores"])
    before, after = (general_mean(found["general"][name]) for name in ("smollm2", "int8"))
    failed = service["requests"] - service["ok"]
    most = beta.ppf(0.95, failed + 1, max(service["requests"] - failed, 1))
    p99 = service["latency_ms"]["p99"]
    return [
        (
            "quality on the task, 8 bits as served / bfloat16 before",
            "at least 80%",
            f"{kept:.1%} ({low:.1%} to {high:.1%})",
            kept >= BAR,
        ),
        (
            "what it could do before (PIQA, ARC-easy), as served / SmolLM2",
            "at least 80%",
            f"{after / before:.1%} ({before:.3f} to {after:.3f})",
            after / before >= BAR,
        ),
        (
            f"P99 of whole answers at {service['rate']:g} requests/s",
            "under 500 ms",
            f"{p99:.0f} ms (P50 {service['latency_ms']['p50']:.0f})",
            p99 < 500,
        ),
        (
            "available, a worker killed halfway",
            "99.9%",
            f"{service['availability']:.2%}: {service['ok']} of {service['requests']} "
            f"(95% sure that fewer than {most:.2%} fail)",
            service["availability"] >= 0.999,
        ),
    ]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def quality_row(name: str, one: dict[str, Any]) -> list[str]:
    kinds = [f"{one['by_kind'][kind]:.3f}" if kind in one["by_kind"] else "" for kind in KINDS]
    worded = [f"{one['known_wording']:.3f}", f"{one['new_wording']:.3f}"]
    value = f"{one['quality']:.3f} ± {interval(one['scores']):.3f}"
    return [MODELS[name], str(one["n"]), value, f"{one['exact']:.3f}", *kinds, *worded]


def changes(found: dict[str, Any], old: str, new: str) -> str:
    """What a stage changed, by the kind of the question: mean of the differences on the same questions."""
    both = list(zip(found["kinds"], found["answers"][old]["scores"], found["answers"][new]["scores"]))
    parts = {kind: [after - before for one, before, after in both if one == kind] for kind in KINDS}
    parts["all"] = [after - before for _, before, after in both]
    cells = [f"{np.mean(part):+.3f} ± {interval(part):.3f}" for part in parts.values()]
    return markdown(["", *parts], [[f"{MODELS[new]}, less {MODELS[old]}", *cells]])


def scored(one: dict[str, Any]) -> str:
    return f"{one['value']:.3f} ± {1.96 * one['stderr']:.3f}"


def table_of_stages(answers: dict[str, dict[str, Any]]) -> str:
    """A row a model."""
    head = ["model", "questions", "quality", "exact", *KINDS, "known wording", "new wording"]
    return markdown(head, [quality_row(name, one) for name, one in answers.items()])


def text(found: dict[str, Any], dashboard: bool) -> str:
    """The report."""
    answers, service, curves = found["answers"], found["service"], found["curves"]
    command = "python experiments/capstone/capstone.py" + (" --short" if found["short"] else "")
    minutes = {stage.name: f"{found['seconds'][stage.name] / 60:.1f}" for stage in STAGES}
    losses = [
        ("reading on", "bits per byte of unseen documents", validation(curves["adapt"], "val/bits_per_byte")),
        ("SFT", "validation loss, nats a token of the answer", validation(curves["sft"], "val/loss")),
        ("DPO", "pairs whose better answer has the higher reward", validation(curves["dpo"], "val/rewards/accuracies")),
    ]
    learnt = [[a, b, ", ".join(f"{step}: {value:.3f}" for step, value in values)] for a, b, values in losses]
    stairs = [
        [
            f"{step['rate_sent']:.2f}",
            str(step["requests"]),
            f"{step['latency_ms']['p50']:.0f}",
            f"{step['latency_ms']['p99']:.0f}",
            "yes" if step["holds"] else "no",
        ]
        for step in service["stairs"]
    ]
    examples = []
    for row, (before, after) in enumerate(zip(answers["smollm2"]["examples"], answers["int8"]["examples"])):
        if row < 4:
            asked = before["prompt"].replace("\n", "\n> ")
            examples += [
                f"> {asked}",
                "",
                f"- SmolLM2: {' '.join(before['answer'].split()) or '(nothing)'}",
                f"- as served: {' '.join(after['answer'].split()) or '(nothing)'}",
                f"- right: {after['right']}",
                "",
            ]
    general = [
        [task, *(scored(found["general"][name][task]) for name in ("smollm2", "int8")), str(one["n"])]
        for task, one in found["general"]["int8"].items()
    ]
    met = bar(found)
    return f"""# A small assistant over the documentation of Python, from raw text to service

    {command}

{"The short" if found["short"] else "The whole"} chain, run once with one seed: intervals (95%) are over questions, not
over trainings. {hardware_in_words(found["hardware"])}.

## Against the bar

{markdown(["what", "aim", "found", "met"], [[a, b, c, "yes" if d else "**no**"] for a, b, c, d in met])}

## What it was made of

{markdown(list(found["data"]), [[f"{value:,}" for value in found["data"].values()]])}

## Quality of the answers, stage by stage

{table_of_stages(answers)}

Quality is the F1 of words of greedy answers beside the right ones (1 or 0 where the right answer is that the passages
do not say). Test questions are of modules that no training question was about; the text of the whole manual, theirs
too, was read in the first stage, as an assistant reads what it is for. With its own retrieval the three passages are
found by TF-IDF among all of the manual's: for {answers["retrieved"]["found"]:.1%} of the questions the right one was
among them (questions about what is absent are left out there). Questions and right answers are made by rule. A program
that knew these rules would always be right; the one in the first row knows only how to copy.

{changes(found, "sft", "dpo")}

![Losses, quality and latency](capstone.png)

{markdown(["stage", "measured", "values (step: value)"], learnt)}

## What it could do before

{markdown(["task", "SmolLM2", "as served", "questions"], general)}

## The service

{markdown(["requests/s", "requests", "P50 ms", "P99 ms", "holds"], stairs)}

Then {service["rate"]:g} requests/s: {service["ok"]} of {service["requests"]} answered, P50 \
{service["latency_ms"]["p50"]:.0f} ms, P99 {service["latency_ms"]["p99"]:.0f} ms, highest \
{service["latency_ms"]["max"]:.0f} ms. Halfway the working worker was killed (SIGKILL).
Service and load generator share the machine; no answers are cached.
{DASHBOARD if dashboard else ""}
## Examples

{chr(10).join(examples)}
## Minutes of each stage

{markdown(list(minutes), [list(minutes.values())])}
"""


def draw(found: dict[str, Any], path: Path) -> None:
    """Losses, quality and latency in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 3.8), width_ratios=[1, 1, 1], layout="constrained")
    for stage, color in (("adapt", "C0"), ("sft", "C1")):
        train = validation(found["curves"][stage], "train/loss")
        axes[0].plot(*zip(*train), color=color, linewidth=0.8, alpha=0.6)
        axes[0].plot(*zip(*validation(found["curves"][stage], "val/loss")), "o-", color=color, label=MODELS[stage])
    axes[0].set(xlabel="step", ylabel="loss, nats a token", title="Training (thin) and validation")
    axes[0].legend(fontsize=8)
    names = list(MODELS)[::-1]
    values = [found["answers"][name]["quality"] for name in names]
    errors = [interval(found["answers"][name]["scores"]) for name in names]
    colors = ["C7" if name == "rule" else "C2" if name in ("int8", "retrieved") else "C0" for name in names]
    axes[1].barh([MODELS[name] for name in names], values, xerr=errors, color=colors)
    axes[1].set(xlabel="F1", xlim=(0, 1), title="Quality of answers, 95% over questions")
    axes[1].tick_params(axis="y", labelsize=8)
    steps = sorted(found["service"]["stairs"], key=lambda one: one["rate_sent"])
    for share in ("p50", "p99"):
        axes[2].plot(
            [one["rate_sent"] for one in steps], [one["latency_ms"][share] for one in steps], "o-", label=share.upper()
        )
    axes[2].axhline(500, color="red", linestyle="--", linewidth=0.8)
    axes[2].set(xlabel="requests/s", ylabel="whole answer, ms", yscale="log", title="The service")
    axes[2].legend(fontsize=8)
    for one in axes:
        one.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what capstone.py filled")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = read(arguments.folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    dashboard = arguments.folder / "service" / "dashboard.png"
    if dashboard.exists():
        shutil.copy(dashboard, arguments.out / "dashboard.png")
    draw(found, arguments.out / "capstone.png")
    (arguments.out / "report.md").write_text(text(found, dashboard.exists()), encoding="utf-8")
    (arguments.out / "results.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{arguments.out / 'report.md'}: " + ("the bar is reached" if all(one[3] for one in bar(found)) else "short"))


if __name__ == "__main__":
    main()
