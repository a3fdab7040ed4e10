"""On one GPU: python -m benchmarks.gpu --nanogpt DIR --text tinyshakespeare.txt.

1. GPT-2 124M, bfloat16, compiled, 32x1024 tokens: tokens/s and MFU of ours through the Trainer, of our bare loop and
   of the peers, each in a process of its own.
2. Seconds from process start until a recipe's own validation loss reaches a target.

Both take some minutes; --only does one of them.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import training
from benchmarks.machine import machine_line
from benchmarks.measure import CONTESTANTS
from benchmarks.peers.ours import CLI
from benchmarks.peers.ours_bare import model_config
from benchmarks.report import markdown_table, write_json, write_report
from benchmarks.request import ROOT, SHAPES
from benchmarks.summary import summarize
from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.callbacks.peak_flops import gpu_peak_flops
from lightning_gpt.nn.flops import training_flops_per_token


def throughput(options: argparse.Namespace) -> tuple[dict, str]:
    """The first part."""
    arguments = ["--sizes", "GPU", "--settings", "bf16-compiled", "--device", "cuda", "--rounds", str(options.rounds)]
    arguments += ["--out", str(options.out)] + (["--nanogpt", options.nanogpt] if options.nanogpt else [])
    results = training.run(training.parse(arguments))
    results["summary"] = summarize(results["measurements"])
    shape = SHAPES["GPU"]
    flops = training_flops_per_token(model_config(shape), shape.block_size)
    peak = gpu_peak_flops(torch.cuda.get_device_name(), torch.bfloat16)
    rows = []
    rates = results["summary"].get("GPU", {"rates": {}})["rates"].get("bf16-compiled", {})
    for name, cell in rates.items():
        rate = cell["median"]
        mfu = f"{rate * flops / peak:.1%}" if peak else "-"
        rows.append([CONTESTANTS[name], f"{rate:,.0f}", f"{rate * flops / 1e12:.0f}", mfu])
    failed = [f"{CONTESTANTS[row['contestant']]}: {row['error']}" for row in results["measurements"] if "error" in row]
    table = markdown_table(["contestant", "tokens/s", "TFLOP/s", "MFU"], rows)
    return results, "\n\n".join([f"## {shape}, bf16, compiled", table, *failed])


def time_to_loss(options: argparse.Namespace, work: Path) -> tuple[dict, str]:
    """The second part: watches the run's metrics.jsonl and ends the run when the target is reached."""
    corpus, runs = work / "tinyshakespeare", work / "runs"
    source = ["--file", options.text] if options.text else []
    prepare = [*CLI, "prepare", "tinyshakespeare", *source, "--tokenizer", "char", "--out", str(corpus)]
    subprocess.run(prepare, cwd=ROOT, check=True)
    command = [*CLI, "fit", "-c", options.config, "-c", options.trainer, "--run.dir", str(runs)]
    command += ["--data.init_args.data_dir", str(corpus)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    best, reached = float("inf"), None
    running = True
    while running and reached is None:
        time.sleep(0.2)
        running = process.poll() is None
        for metrics in runs.rglob("metrics.jsonl"):
            losses = [row["val/loss"] for row in read_metrics(metrics) if "val/loss" in row]
            best = min(losses, default=best)
        if best <= options.target:
            reached = time.perf_counter() - start
    if running:
        process.terminate()
        process.wait()
    what = f"{reached:.0f} s" if reached else "not reached"
    result = {"config": options.config, "target": options.target, "seconds": reached, "best": best}
    return result, f"## {options.config} to {options.target}\n\n{what}; best validation loss {best:.4f}."


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", metavar="DIR", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--text", metavar="FILE", help="Tiny Shakespeare (default: download it)")
    parser.add_argument("--config", default="configs/pretrain/shakespeare_char_nanogpt.yaml", help="of part 2")
    parser.add_argument("--trainer", default="configs/trainer/one_gpu.yaml", help="default: %(default)s")
    parser.add_argument("--target", type=float, default=1.47, help="validation loss, default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="of part 1, default: %(default)s")
    parser.add_argument("--only", choices=("throughput", "quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    results: dict = {"machine": training.describe_machine()}
    parts = ["# One GPU", machine_line(results["machine"])]
    if options.only != "quality":
        results["throughput"], text = throughput(options)
        parts.append(text)
        write_json(options.out, results)
    if options.only != "throughput":
        with tempfile.TemporaryDirectory(prefix="benchmark_") as work:
            results["quality"], text = time_to_loss(options, Path(work))
        parts.append(text)
    write_report(options.out, results, "\n\n".join(parts))


if __name__ == "__main__":
    main()
