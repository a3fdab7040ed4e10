"""From SFT to an aligned model by both roads, and what happens when nothing holds the policy back.

    python experiments/13_alignment/pipeline.py

Pairs of the SFT model's answers, ordered by VADER's sentiment with noise, train a reward model (the proxy) and, another
half of them, a second one (the judge). Then PPO against the proxy with and without a KL penalty, and DPO on the pairs,
with three seeds each. Every policy answers 512 prompts that nobody has learnt from: proxy, judge, the sentiment itself,
KL divergence, and how often the judge prefers it to the SFT model. Finished runs are kept in runs/pipeline. Writes
experiments/13_alignment/pipeline/ with results.json, pipeline.png and report.md.
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch
import yaml
from frontier_report import half_width

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main as lightning_gpt
from lightning_gpt.evaluation.ratings import Battle, win_rate
from lightning_gpt.hub import open_model
from lightning_gpt.inference import SamplingConfig
from lightning_gpt.objectives.log_probs import token_log_probs
from lightning_gpt.rewards import Lexicon, ModelReward
from lightning_gpt.tasks.rollout import draw_answers

HERE, RUNS, SFT = Path(__file__).parent, Path("runs/pipeline"), "models/sft_shakespeare"
SEEDS = (1, 2, 3)
QUESTION = (
    "How good do answers become by SFT, RM and PPO, and by SFT and DPO; and what is hacked when KL costs nothing?"
)
COLUMNS = {
    "proxy": "proxy reward",
    "judge": "held-out reward model",
    "sentiment": "sentiment itself",
    "win_rate": "preferred to SFT by the held-out model",
    "kl": "KL, nats",
    "length": "tokens",
    "distinct": "distinct words / words",
    "drawing": "share of training time spent drawing answers",
}


def fit(name: str, config: str, *options: object) -> Path:
    """A run of a committed configuration; kept when it has been made already."""
    directory = RUNS / name
    done = directory / "done"
    if not done.exists():
        files = ["-c", f"configs/{config}/shakespeare.yaml", "-c", "configs/trainer/cpu.yaml"]
        plain = ["--run.dir", str(RUNS), "--run.name", name, "--run.tensorboard", "false", "--curve.enabled", "false"]
        quiet = ["--samples.tokens", "0", "--progress.plain_every", "3600"]
        lightning_gpt(["fit", *files, *plain, *quiet, *map(str, options)])
        done.touch()
    return max(directory.glob("version_*"), key=lambda p: int(p.name.split("_")[1])) / "checkpoints" / "last.ckpt"


def halves() -> tuple[Path, Path]:
    """The pairs in two: one to learn from, one for the judge."""
    rows = Path("data/sentiment/train.jsonl").read_text().splitlines(keepends=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, part in (("learn", rows[::2]), ("judge", rows[1::2])):
        (RUNS / f"{name}.jsonl").write_text("".join(part))
    return RUNS / "learn.jsonl", RUNS / "judge.jsonl"


def measure(policy: str | Path, proxy: ModelReward, judge: ModelReward, base: dict | None) -> dict:
    """One sampled answer to each prompt, and everything about them."""
    prompts = [json.loads(line)["prompt"] for line in Path("data/speeches/test.jsonl").read_text().splitlines()[:512]]
    net, tokenizer = open_model(policy)
    reference, _ = open_model(SFT)
    ids = [tokenizer.encode(prompt)[-32:] for prompt in prompts]
    texts, ratios, lengths = [], [], []
    for first in range(0, len(ids), 128):
        some = ids[first : first + 128]
        seeds = list(range(first, first + len(some)))
        drawn = draw_answers(net, tokenizer, some, 64, SamplingConfig(), seeds, tokenizer.end_ids)
        with torch.inference_mode():
            both = [token_log_probs(one(drawn.input_ids), drawn.targets).sum(-1) for one in (net, reference)]
        texts += drawn.texts
        ratios += (both[0] - both[1]).tolist()
        lengths += drawn.lengths.tolist()
    judged = judge(prompts, texts)
    words = " ".join(texts).split()
    found = {
        "proxy": statistics.mean(proxy(prompts, texts)),
        "judge": statistics.mean(judged),
        "sentiment": statistics.mean(Lexicon()(prompts, texts)),
        "kl": statistics.mean(ratios),
        "length": statistics.mean(lengths),
        "distinct": len(set(words)) / max(len(words), 1),
        "answers": texts[:4],
        "judged": judged,
    }
    if base is not None:
        battles = [Battle("policy", "sft", float(a > b) + 0.5 * (a == b)) for a, b in zip(judged, base["judged"])]
        found["win_rate"], found["win_low"], found["win_high"], _ = win_rate(battles, "policy", "sft")
    return found


def main() -> None:
    """Runs what is missing, then writes the report."""
    learn, judged = halves()
    short = ["--trainer.max_steps", 160]
    rm = fit("proxy", "reward", "--data.train", learn, *short)
    held_out = fit("judge", "reward", "--data.train", judged, *short, "--seed_everything", 99)
    proxy, judge = ModelReward(str(rm)), ModelReward(str(held_out))
    reward = {"class_path": "lightning_gpt.rewards.ModelReward", "init_args": {"path": str(rm)}}
    (RUNS / "reward.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"reward": reward}}}))
    base = measure(SFT, proxy, judge, None)
    rows: dict[str, list[dict]] = {"SFT": [base]}
    for seed in SEEDS:
        for label, beta in (("PPO, KL penalty 0.1", 0.1), ("PPO, no KL penalty", 0.0)):
            options = ["-c", RUNS / "reward.yaml", "--model.kl.beta", beta, "--seed_everything", seed]
            run = fit(f"ppo_{beta}_{seed}", "ppo", *options, "--trainer.max_steps", 120, "--model.optimizer.lr", 5e-4)
            measured = measure(run, proxy, judge, base)
            shares = [
                row["speed/generation_share"]
                for row in read_metrics(run.parents[1] / "metrics.jsonl")
                if "speed/generation_share" in row
            ]
            rows.setdefault(label, []).append(measured | {"drawing": statistics.median(shares)})
        options = ["--data.train", learn, "--model.reference_file", RUNS / "reference.safetensors"]
        run = fit(f"dpo_{seed}", "dpo", *options, "--seed_everything", seed, "--trainer.max_steps", 150)
        rows.setdefault("DPO, beta 0.1", []).append(measure(run, proxy, judge, base))
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    write(rows)


def write(rows: dict[str, list[dict]]) -> None:
    """results.json, pipeline.png, report.md."""
    out = HERE / "pipeline"
    out.mkdir(exist_ok=True)
    names = list(COLUMNS)
    lines = ["| policy | n | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(names)]
    for label, runs in rows.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs if name in run]
            width = half_width(values)
            cells.append(
                (f"{statistics.mean(values):.3f}" + ("" if width is None else f" ± {width:.3f}")) if values else ""
            )
        lines.append(f"| {label} | {len(runs)} | " + " | ".join(cells) + " |")
    hardware = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    command = "python experiments/13_alignment/pipeline.py"
    kept = {label: [{k: v for k, v in run.items() if k != "judged"} for run in runs] for label, runs in rows.items()}
    content = {"question": QUESTION, "command": command, "hardware": hardware, "rows": kept}
    temporary = out / ".results.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, out / "results.json")
    means = {
        label: {name: statistics.mean(run[name] for run in runs) for name in names if name in runs[0]}
        for label, runs in rows.items()
    }
    said = "; ".join(
        f"{label}: preferred {m['win_rate']:.1%}, proxy {m['proxy']:.2f}, held-out {m['judge']:.2f}, "
        f"sentiment {m['sentiment']:.2f}, {m['kl']:.1f} nats"
        for label, m in means.items()
        if "win_rate" in m
    )
    sample = "\n".join(f"- {label}: {runs[0]['answers'][0]!r}" for label, runs in rows.items())
    text = (
        f"# {QUESTION}\n\n    {command}\n\n{said}. SFT itself: proxy {means['SFT']['proxy']:.2f}, held-out "
        f"{means['SFT']['judge']:.2f}, sentiment {means['SFT']['sentiment']:.2f}.\n\n"
        "![Proxy and the rest](pipeline.png)\n\n"
        f"Means over seeds {', '.join(map(str, SEEDS))}, ± half-width of a 95% t interval; 512 prompts, one sampled "
        f"answer each. {hardware}.\n\n"
        + "\n".join(lines)
        + f"\n\nThe first prompt's answers (seed {SEEDS[0]}):\n\n{sample}\n"
    )
    (out / "report.md").write_text(text)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8))
    for axis, name in zip(axes, ("judge", "sentiment")):
        for label, runs in rows.items():
            axis.plot([run["proxy"] for run in runs], [run[name] for run in runs], "o", label=label)
        axis.set(xlabel=COLUMNS["proxy"], ylabel=COLUMNS[name])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "pipeline.png", dpi=120)


if __name__ == "__main__":
    main()
