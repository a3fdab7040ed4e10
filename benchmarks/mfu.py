"""Share of a GPU's peak that training reaches, and its memory beside the planned: python -m benchmarks.mfu DIR.

DIR is a prepared corpus whose vocabulary is of the usual size, such as one of GPT-2's 50,257 pieces:

    lightning-gpt prepare tinyshakespeare --tokenizer gpt2 --out data/shakespeare_gpt2

Each case is `lightning-gpt fit` in a process of its own; every step is waited for, so that nothing hides in a queue.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
import yaml

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from benchmarks.request import ROOT
from lightning_gpt.callbacks.peak_flops import gpu_peak_flops
from lightning_gpt.cli.measured_run import measured_settings
from lightning_gpt.cli.memory_settings import training_job
from lightning_gpt.cli.settings_check import parsed_arguments
from lightning_gpt.nn.flops import parameters, training_flops_per_token
from lightning_gpt.planning.memory_overhead import plan_memory

BILLION = {"n_layer": 16, "n_head": 32, "n_kv_head": 8, "n_embd": 2048, "ffn_hidden": 8192}
"""LLaMA 3.2 1B but for its vocabulary."""
CASES: dict[str, dict] = {
    "125M, 32 x 1024": {"batch_size": 32, "block_size": 1024},
    "125M, 16 x 2048": {"batch_size": 16, "block_size": 2048},
    "125M, 32 x 1024, not compiled": {"batch_size": 32, "block_size": 1024, "compile": False},
    "1B, 8 x 2048": {"batch_size": 8, "block_size": 2048, "config": BILLION},
    "1B, 16 x 2048, every block recomputed": {
        "batch_size": 16,
        "block_size": 2048,
        "config": BILLION,
        "activation_checkpointing": 1,
    },
}
WARMUP, STEPS = 4, 12


def fit_files(folder: Path, corpus: Path, case: dict, device: str) -> list[str]:
    """-c files of a case: LLaMA's YAML, the trainer's, the case's."""
    model = {key: case[key] for key in ("config", "compile", "activation_checkpointing") if key in case}
    settings = {
        "model": {"init_args": model},
        "data": {"init_args": {"data_dir": str(corpus)} | {k: case[k] for k in ("batch_size", "block_size")}},
        "trainer": {"accumulate_grad_batches": 1},
    }
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(settings))
    trainer = "one_gpu" if device == "cuda" else "cpu"
    files = [ROOT / "configs/pretrain/llama_125m.yaml", ROOT / f"configs/trainer/{trainer}.yaml", path]
    return [part for file in files for part in ("-c", str(file))]


def measure(corpus: Path, case: dict, device: str) -> dict:
    """Seconds of the timed steps, peak bytes, and what was planned.

    Raises:
        RuntimeError: the run failed; its last line.
    """
    with tempfile.TemporaryDirectory(prefix="mfu_") as scratch:
        folder = Path(scratch)
        files = fit_files(folder, corpus, case, device)
        job = training_job(parsed_arguments(files), device=device)
        cost = {"path": str(folder / "cost.json"), "warmup": WARMUP, "steps": STEPS}
        callback = {"class_path": "lightning_gpt.callbacks.measurement.StepCost", "init_args": cost}
        short = folder / "short.yaml"
        short.write_text(yaml.safe_dump(measured_settings(folder, WARMUP + STEPS + 1, callback)))
        command = [sys.executable, "-m", "lightning_gpt", "fit", *files, "-c", str(short)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not (folder / "cost.json").exists():
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        found = json.loads((folder / "cost.json").read_text())
    tokens = case["batch_size"] * case["block_size"]
    flops = training_flops_per_token(job.config, case["block_size"])
    peak = gpu_peak_flops(torch.cuda.get_device_name(), torch.bfloat16) if device == "cuda" else None
    rate = tokens / median(found["seconds"])
    return {
        "parameters": parameters(job.config),
        "seconds": found["seconds"],
        "tokens_per_second": rate,
        "tflops": rate * flops / 1e12,
        "mfu": rate * flops / peak if peak else None,
        "peak_bytes": found["peak_bytes"],
        "planned_bytes": plan_memory(job, imported=0.0, curve=False).peak.total,
    }


def row(name: str, one: dict) -> list[str]:
    """Of the table."""
    if "error" in one:
        return [name, one["error"], *["-"] * 6]
    measured, planned = one["peak_bytes"] / 2**30, one["planned_bytes"] / 2**30
    return [
        name,
        f"{one['parameters'] / 1e6:,.0f}M",
        f"{one['tokens_per_second']:,.0f}",
        f"{one['tflops']:.0f}",
        f"{one['mfu']:.1%}" if one["mfu"] else "-",
        f"{measured:.1f}",
        f"{planned:.1f}",
        f"{planned / measured - 1:+.0%}",
    ]


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="DIR", help="a prepared corpus")
    parser.add_argument("--only", nargs="*", default=list(CASES), help="cases, by the beginning of their names")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mfu.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, dict] = {}
    machine = describe_machine()
    for name, case in CASES.items():
        if not any(name.startswith(wanted) for wanted in options.only):
            continue
        try:
            results[name] = measure(options.corpus, case, device)
        except RuntimeError as error:
            results[name] = {"error": str(error)}
        print(" | ".join(row(name, results[name])), flush=True)
        headings = ["case", "parameters", "tokens/s", "TFLOP/s", "MFU", "peak, GiB", "planned, GiB", "error"]
        table = markdown_table(headings, [row(*one) for one in results.items()])
        text = (
            f"# Training on one device: LLaMA-shaped networks, bfloat16\n\n```\npython -m benchmarks.mfu DIR\n```\n\n"
            f"{table}\n\nMedian of {STEPS} steps after {WARMUP}, AdamW, compiled unless said. MFU: analytic FLOPs "
            "(nn/flops.py) over the data sheet's dense bfloat16 peak. Memory: the allocator's peak of tensors beside "
            f"`plan memory`'s largest moment without process and allocator.\n\n{machine_line(machine)}\n"
        )
        write_report(options.out, {"machine": machine, "cases": results}, text)


if __name__ == "__main__":
    main()
