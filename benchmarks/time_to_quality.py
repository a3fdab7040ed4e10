"""Seconds from process start to nanoGPT's validation loss: python -m benchmarks.time_to_quality --nanogpt DIR.

nanoGPT's own train.py with the CPU recipe of its README, against `lightning-gpt fit` on the same text: whole processes,
imports, evaluation and saving included. Afterwards, outside the timing, benchmarks/validation_loss.py measures what
each left behind. See benchmarks/README.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import product
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.ours import CLI
from benchmarks.report import markdown_table, write_json, write_report
from benchmarks.request import ROOT

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DATASET = "data/shakespeare_char"
RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1000 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters={steps} "
    "--lr_decay_iters={steps} --dropout=0.0"
)
# nanoGPT switches autocast off on CPU whatever dtype says. For bf16 a copy of its train.py has this part replaced.
NO_AUTOCAST = "nullcontext() if device_type == 'cpu' else "


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", metavar="DIR", required=True, help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--text", type=Path, help="Tiny Shakespeare as a file (default: download it)")
    parser.add_argument(
        "--config",
        action="append",
        help="a recipe of ours, repeatable (default: configs/pretrain/tinyshakespeare_fast.yaml)",
    )
    parser.add_argument("--trainer", default="configs/trainer/cpu.yaml", help="default: %(default)s")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of nanoGPT (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, interleaved (default: %(default)s)")
    parser.add_argument("--nanogpt-steps", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--steps", help="of ours, several with commas: each config runs with each (default: its own)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/time_to_quality.json"))
    options = parser.parse_args(arguments)
    options.nanogpt = Path(options.nanogpt).resolve()
    if not (options.nanogpt / "train.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt} holds no train.py: git clone https://github.com/karpathy/nanoGPT")
    options.config = options.config or ["configs/pretrain/tinyshakespeare_fast.yaml"]
    if options.steps and not all(word.isdigit() and int(word) for word in options.steps.split(",")):
        parser.error(f"--steps {options.steps}: positive whole numbers with commas between them, such as 200,1200")
    options.steps = [int(word) for word in options.steps.split(",")] if options.steps else [None]
    for config in [*options.config, options.trainer]:
        if not (ROOT / config).is_file():
            parser.error(f"{config} does not exist")
    return options


def process(command: list[str], cwd: Path) -> float:
    """Seconds of the whole process.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{(done.stderr or done.stdout)[-2000:]}")
    return seconds


def loss_of(*arguments: object) -> dict:
    """What benchmarks.validation_loss prints."""
    command = [sys.executable, "-m", "benchmarks.validation_loss", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare(options: argparse.Namespace, work: Path) -> tuple[Path, Path, Path]:
    """Text, a copy of nanoGPT with its data made, and our corpus; none of it is timed."""
    text, nanogpt, corpus = work / "input.txt", work / "nanoGPT", work / "tinyshakespeare"
    if options.text:
        shutil.copy(options.text, text)
    else:
        urllib.request.urlretrieve(URL, text)
    shutil.copytree(options.nanogpt, nanogpt, ignore=shutil.ignore_patterns(".git", "out*"))
    shutil.copy(text, nanogpt / DATASET / "input.txt")
    process([sys.executable, f"{DATASET}/prepare.py"], nanogpt)
    source = (nanogpt / "train.py").read_text()
    if NO_AUTOCAST not in source:
        raise SystemExit("nanoGPT's train.py has changed: its line about autocast on CPU is not as expected")
    (nanogpt / "train_autocast.py").write_text(source.replace(NO_AUTOCAST, ""))
    process(
        [*CLI, "prepare", "tinyshakespeare", "--file", str(text), "--tokenizer", "char", "--out", str(corpus)], ROOT
    )
    return text, nanogpt, corpus


def run_nanogpt(dtype: str, options: argparse.Namespace, work: Path, text: Path, nanogpt: Path) -> dict:
    """One whole process of nanoGPT."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    script = "train.py" if dtype == "float32" else "train_autocast.py"
    recipe = RECIPE.format(steps=options.nanogpt_steps).split()
    seconds = process([sys.executable, script, *recipe, f"--dtype={dtype}", f"--out_dir={out}"], nanogpt)
    return {"seconds": seconds, **loss_of("nanogpt", out / "ckpt.pt", text, nanogpt)}


def run_ours(config: str, steps: int | None, options: argparse.Namespace, work: Path, text: Path, corpus: Path) -> dict:
    """One whole process of ours; `logged` is the last validation loss that it reported itself."""
    from lightning_gpt.callbacks.jsonl_logger import read_metrics

    runs = work / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    command = [*CLI, "fit", "-c", config, "-c", options.trainer, "--data.init_args.data_dir", str(corpus)]
    command += ["--run.dir", str(runs)]
    if steps:
        command += ["--trainer.max_steps", str(steps)]
    seconds = process(command, ROOT)
    (metrics,) = runs.rglob("metrics.jsonl")
    logged = [row["val/loss"] for row in read_metrics(metrics) if "val/loss" in row]
    return {"seconds": seconds, "logged": logged[-1] if logged else None, **loss_of("ours", runs, text)}


def markdown(results: dict) -> str:
    """The report."""
    contestants: dict[str, list[dict]] = {}
    for row in results["measurements"]:
        contestants.setdefault(row["contestant"], []).append(row)
    seconds = {name: median(row["seconds"] for row in rows) for name, rows in contestants.items()}
    losses = {name: median(row["loss"] for row in rows) for name, rows in contestants.items()}
    peer = min((name for name in seconds if name.startswith("nanoGPT")), key=seconds.__getitem__)
    table = []
    for name, rows in contestants.items():
        each = [row["seconds"] for row in rows]
        table.append(
            [
                name,
                f"{seconds[name]:.1f}",
                f"{min(each):.1f} to {max(each):.1f}",
                f"{losses[name]:.4f}",
                f"{rows[-1]['logged']:.4f}" if rows[-1].get("logged") else "-",
                f"{seconds[name] / seconds[peer]:.3f}",
                "yes" if losses[name] <= losses[peer] else "no",
            ]
        )
    headings = [
        "run",
        "seconds",
        "spread",
        "validation loss",
        "its own log",
        "of the peer's time",
        "reaches the peer's loss",
    ]
    return "\n\n".join(
        [
            "# Time to quality, Tiny Shakespeare characters",
            machine_line(results["machine"]),
            f"Whole processes, medians of {results['rounds']} interleaved rounds. The peer is {peer}, the faster "
            "setting of nanoGPT. Loss in nats per character over the whole validation split, the same code for both.",
            markdown_table(headings, table),
        ]
    )


def main() -> None:
    """As the module says."""
    options = parse()
    results: dict = {"machine": describe_machine(), "rounds": options.rounds, "measurements": []}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        work = Path(temporary)
        text, nanogpt, corpus = prepare(options, work)
        for turn in range(options.rounds):
            for dtype in options.dtypes.split(","):
                row = run_nanogpt(dtype, options, work, text, nanogpt)
                results["measurements"].append({"round": turn, "contestant": f"nanoGPT {dtype}", **row})
                print(results["measurements"][-1], flush=True)
            for config, steps in product(options.config, options.steps):
                row = run_ours(config, steps, options, work, text, corpus)
                name = f"ours {Path(config).stem}" + (f", {steps} steps" if steps else "")
                results["measurements"].append({"round": turn, "contestant": name, **row})
                print(results["measurements"][-1], flush=True)
            write_json(options.out, results)
    write_report(options.out, results, markdown(results))


if __name__ == "__main__":
    main()
