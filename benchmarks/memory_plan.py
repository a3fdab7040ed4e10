"""Predicted and measured peak memory of real runs: python -m benchmarks.memory_plan.

Every run is `lightning-gpt fit` in a process of its own, some steps and a validation; its peak is the largest resident
memory that the system books for it. The prediction is what `lightning-gpt plan memory` says of the same file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.ours import random_corpus
from benchmarks.report import markdown_table, write_report
from benchmarks.request import ROOT, SHAPES

GPT2 = {"bias": False, "vocab_multiple": 64}
SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "bias": False}
PARTS = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False}
LLAMA = {"n_layer": 8, "n_head": 8, "n_embd": 512, "n_kv_head": 2, **PARTS}


def case(network: dict, shape: str, precision: str, optimizer: str = "AdamW", held_out: bool = True, **more) -> dict:
    """One run. `shape` is BxT of characters, or with "V" behind it of a vocabulary of 50,304; `more`: checkpointing,
    in_backward, accumulate, val_batch_size, steps."""
    return {"network": network, "shape": shape, "precision": precision, "optimizer": optimizer, **more} | {
        "held_out": held_out
    }


def seen(*args, **more) -> dict:
    """A run that the constants of planning/memory_overhead.py were fitted on, among others."""
    return case(*args, held_out=False, **more)


CASES: dict[str, dict] = {
    "small, fp32": seen(SMALL, "16x256", "32-true"),
    "small, recomputed": seen(SMALL, "64x256", "32-true", checkpointing=1),
    "small, wide validation": seen(SMALL, "8x256", "32-true", val_batch_size=128),
    "GPT-2": seen(GPT2, "1x1024V", "bf16-mixed"),
    "LLaMA, GQA": seen(LLAMA, "8x512", "32-true"),
    "experts": seen({**PARTS, "n_layer": 4, "n_head": 4, "n_embd": 256, "moe": {"experts": 8}}, "32x256", "bf16-mixed"),
    "0.8 M, many windows": case({**SMALL, "n_layer": 4, "n_head": 4, "n_embd": 128}, "128x256", "bf16-mixed"),
    "6 M, odd shape": case({**SMALL, "n_layer": 5, "n_head": 5, "n_embd": 320}, "24x384", "32-true"),
    "GPT-2, fp32": case(GPT2, "4x256V", "32-true"),
    "LLaMA 160 M, untied, recomputed": case(
        {**PARTS, "n_layer": 12, "n_kv_head": 4, "tie_embeddings": False}, "2x512V", "bf16-mixed", checkpointing=1
    ),
    "25 M, bf16-true": case({"n_layer": 8, "n_head": 8, "n_embd": 512}, "4x1024", "bf16-true"),
    "25 M, 8 bits": case({"n_layer": 8, "n_head": 8, "n_embd": 512}, "8x512", "bf16-mixed", "AdamW8bit"),
    "LLaMA, Muon": case({**LLAMA, "n_layer": 6}, "4x512V", "bf16-mixed", "MuonAdamW"),
    "experts, fp32": seen(
        {"n_layer": 6, "n_head": 4, "n_embd": 256, "moe": {"experts": 4}}, "16x256", "32-true", steps=8
    ),
    "experts, one of six, shared": case(
        {**PARTS, "n_layer": 5, "n_head": 6, "n_embd": 192, "moe": {"experts": 6, "top_k": 1, "shared": 1}},
        "24x256",
        "bf16-mixed",
    ),
    "dropout": case({**SMALL, "dropout": 0.1}, "8x512", "bf16-mixed"),
    "every second recomputed": seen({**SMALL, "n_layer": 8}, "32x256", "bf16-mixed", checkpointing=2),
    "every third recomputed": case(
        {**SMALL, "n_layer": 9, "n_head": 5, "n_embd": 320}, "24x256", "32-true", checkpointing=3
    ),
    "LLaMA, wide validation": seen(
        {**LLAMA, "n_layer": 5, "n_head": 5, "n_embd": 320, "n_kv_head": 1}, "4x512V", "bf16-mixed", val_batch_size=40
    ),
    "3 M, wide validation": case(
        {"n_layer": 5, "n_head": 4, "n_embd": 224}, "16x192", "bf16-mixed", val_batch_size=160
    ),
    "large vocabulary, wide validation": seen(
        {"n_layer": 4, "n_head": 4, "n_embd": 256}, "8x256V", "32-true", val_batch_size=48
    ),
    "window": case({**LLAMA, "n_kv_head": 8, "window": 128}, "4x1024", "32-true"),
    "large vocabulary, accumulated": case({**SMALL, "n_layer": 4}, "4x512V", "32-true", accumulate=4),
    "recipe of the demo": case(
        {**PARTS, "n_layer": 6, "n_head": 8, "n_embd": 256, "norm_affine": False, "qk_norm": True}
        | {"feed_forward": "relu2", "tie_embeddings": False},
        "48x192",
        "bf16-mixed",
        "MuonAdamW",
    ),
    "products kept": case({**SMALL, "n_layer": 7}, "40x256", "32-true", checkpointing="selective"),
    "products kept, LLaMA": case(LLAMA, "16x512", "bf16-mixed", checkpointing="selective"),
    "attention recomputed": case({**SMALL, "n_layer": 5}, "32x256", "32-true", checkpointing="attention"),
    "half kept": case({**SMALL, "n_layer": 9, "n_embd": 320, "n_head": 5}, "32x256", "32-true", checkpointing=0.5),
    "a third kept, LLaMA": case({**LLAMA, "n_layer": 6}, "12x512", "bf16-mixed", checkpointing=0.33),
    "step in the backward pass": case(GPT2, "2x256V", "bf16-mixed", in_backward=True),
    "16 layers, recomputed": case(
        {"n_layer": 16, "n_head": 8, "n_embd": 512, "bias": False}, "8x256", "32-true", checkpointing=1
    ),
    "recomputed, step in the backward pass": case(
        {"n_layer": 16, "n_head": 8, "n_embd": 512, "bias": False},
        "8x256",
        "32-true",
        checkpointing=1,
        in_backward=True,
    ),
}


def settings(one: dict, corpora: dict[bool, Path], runs: Path) -> dict:
    """The YAML of a run."""
    rows, _, tokens = one["shape"].rstrip("V").partition("x")
    data = {"data_dir": str(corpora["V" in one["shape"]]), "batch_size": int(rows), "block_size": int(tokens)}
    data |= {key: one[key] for key in ("val_batch_size",) if key in one}
    arguments = {
        "config": one["network"],
        "optimizer": {
            "class_path": f"lightning_gpt.optim.{one['optimizer']}",
            "init_args": {"in_backward": True} if one.get("in_backward") else {},
        },
        "schedule": {"class_path": "lightning_gpt.optim.Constant"},
        "activation_checkpointing": one.get("checkpointing", 0),
    }
    return {
        "run": {"name": "memory", "dir": str(runs)},
        "model": {"class_path": "lightning_gpt.tasks.Pretraining", "init_args": arguments},
        "data": {"class_path": "lightning_gpt.data.TokenData", "init_args": data},
        "samples": {"tokens": 0},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": one["precision"],
            "max_steps": one.get("steps", 4),
            "limit_val_batches": 2,
            "accumulate_grad_batches": one.get("accumulate", 1),
            "gradient_clip_val": None if one.get("in_backward") else 1.0,
        },
    }


def measured(config: Path) -> int:
    """Bytes of the largest resident memory of the run."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "lightning_gpt", "fit", "-c", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode(errors="replace")[-2000:])
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def predicted(config: Path):
    """The plan of the same file, as the command makes it."""
    from lightning_gpt.cli.memory_settings import training_job
    from lightning_gpt.cli.settings_check import parsed_settings
    from lightning_gpt.planning.memory_overhead import plan_memory

    return plan_memory(training_job(parsed_settings([config])))


def summary(rows: list[dict], held_out: bool) -> str:
    """The errors of one part of the cases in a line."""
    chosen = [row for row in rows if row["held_out"] == held_out]
    if not chosen:
        return ""
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in chosen]
    above = [abs(row["predicted"] - row["measured"]) / (row["measured"] - row["process"]) for row in chosen]
    within = sum(error <= 0.1 for error in errors)
    return (
        f"{'Held out' if held_out else 'Calibration'}: {within} of {len(chosen)} within 10% of the measured peak, "
        f"largest error {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}; of the part above the process' own "
        f"base largest {max(above):.1%}, mean {sum(above) / len(above):.1%}."
    )


def report(rows: list[dict], command: str) -> tuple[dict, str]:
    """Content of the JSON file, and the Markdown."""
    machine = describe_machine()
    table = []
    for row in rows:
        error, above = row["predicted"] - row["measured"], row["measured"] - row["process"]
        table.append(
            [
                row["name"],
                "held out" if row["held_out"] else "calibration",
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['shape']} {row['precision']} {row['optimizer']}",
                f"{row['measured'] / 2**20:,.0f}",
                f"{row['predicted'] / 2**20:,.0f}",
                f"{error / row['measured']:+.1%}",
                f"{error / above:+.1%}",
                row["moment"],
            ]
        )
    headings = ["run", "set", "M parameters", "setting", "measured MiB", "predicted MiB", "error", "error above base"]
    text = [
        "# Peak memory of training on CPU: predicted and measured",
        machine_line(machine),
        f"`{command}`",
        "Resident memory of a real `lightning-gpt fit` process (4 steps, 8 with experts in float32, and a validation), "
        "against `lightning-gpt plan memory` of the same file. A V behind the windows marks a vocabulary of 50,304, "
        "otherwise 84. The constants of `planning/memory_overhead.py` were fitted on the calibration runs and others "
        "like them. Four of those were held out at first, missed by 13 to 24%, and moved to calibration when the count "
        "that they showed wrong was mended; held-out figures are thus kinder than a first sight. The base is the "
        "process without its training.",
        summary(rows, True),
        summary(rows, False),
        markdown_table([*headings, "predicted moment"], table),
    ]
    return {"machine": machine, "command": command, "runs": rows}, "\n\n".join(part for part in text if part)


def main() -> None:
    """Runs every case, or some."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_plan", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), help="names of runs; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory_plan.json"))
    options = parser.parse_args()
    from lightning_gpt.data.prepare import prepare
    from lightning_gpt.nn.flops import parameters

    rows = []
    with tempfile.TemporaryDirectory(prefix="memory_plan_") as scratch:
        work = Path(scratch)
        prepare("shakespeare", "char", out=str(work / "shakespeare"))
        corpora = {False: work / "shakespeare", True: random_corpus(SHAPES["L"], work)}
        for name in options.only:
            one = CASES[name]
            config = work / "run.yaml"
            config.write_text(yaml.safe_dump(settings(one, corpora, work / "runs")))
            plan = predicted(config)
            row = {key: value for key, value in one.items() if key != "network"} | {
                "name": name,
                "parameters": parameters(plan.job.config),
                "predicted": plan.total,
                "process": plan.process,
                "moment": plan.peak.name,
                "measured": measured(config),
            }
            rows.append(row)
            error = row["predicted"] / row["measured"] - 1
            print(
                f"{name}: {row['measured'] / 2**20:,.0f} MiB, predicted {plan.total / 2**20:,.0f}, {error:+.1%}",
                flush=True,
            )
    content, text = report(rows, "python -m benchmarks.memory_plan")
    write_report(options.out, content, text)


if __name__ == "__main__":
    main()
