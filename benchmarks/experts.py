"""What a mixture of experts costs beside a dense feed-forward of equal active FLOPs: python -m benchmarks.experts.

One layer, forward and backward, router and losses included; the readable loop beside the grouped product. Paths are
taken in turns. See benchmarks/README.md.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.feedforward import build_dense
from lightning_gpt.nn.moe import MixtureOfExperts
from lightning_gpt.nn.moe_config import MoEConfig

SHAPES = [(2048, 128, 128, 8, 2), (1024, 256, 256, 8, 2), (2048, 128, 64, 32, 4)]
"""Tokens, width, expert's hidden width, experts, experts a token."""


def layers(C: int, hidden: int, E: int, K: int) -> dict[str, nn.Module]:
    """A dense feed-forward K times as wide as an expert, the mixture, and the mixture through its loop."""
    moe = MoEConfig(experts=E, top_k=K, expert_hidden=hidden)
    config = GPTConfig(n_embd=C, n_head=1, n_layer=1, bias=False, feed_forward="swiglu", moe=moe)
    torch.manual_seed(0)
    mixtures = {name: MixtureOfExperts(config) for name in ("grouped", "loop")}
    for mixture in mixtures.values():
        for parameter in mixture.experts.parameters():
            nn.init.normal_(parameter, std=0.02)
    mixtures["loop"].experts.forward = mixtures["loop"].experts.loop
    return {"dense": build_dense(config, K * hidden, "swiglu"), **mixtures}


def measure(shape: tuple[int, ...], bf16: bool, threads: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of forward and backward."""
    torch.set_num_threads(threads)
    T, C, hidden, E, K = shape
    modules = {name: layer.to(device) for name, layer in layers(C, hidden, E, K).items()}
    taken: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(repeats + 3):
        x = torch.randn(1, T, C, device=device, requires_grad=True)  # other loads each time, as in training
        for name, layer in modules.items():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                y = layer(x)
                loss = y.float().square().mean()
                if name != "dense":
                    loss = loss + layer.report.loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(1e3 * (time.perf_counter() - start))
            layer.zero_grad()
            x.grad = None
    return {name: median(times[3:]) for name, times in taken.items()}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--threads", default="1,2", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/experts.json"))
    options = parser.parse_args()
    keep_freed_memory()
    measurements, table = [], []
    threads = [int(number) for number in options.threads.split(",")]
    settings = [(name, name == "bf16", number) for name in ("fp32", "bf16") for number in threads]
    for shape in SHAPES:
        for name, bf16, number in settings:
            times = measure(shape, bf16, number, options.repeats, torch.device(options.device))
            T, C, hidden, E, K = shape
            measurements.append(
                {"tokens": T, "width": C, "hidden": hidden, "experts": E, "top_k": K, "dtype": name, "threads": number}
                | times
            )
            ratios = [f"{times[path] / times['dense']:.2f}" for path in ("grouped", "loop")]
            shown = [f"{times[path]:.2f}" for path in ("dense", "grouped", "loop")]
            table.append([f"T{T} D{C} F{hidden} E{E} K{K}", name, str(number), *shown, *ratios])
            print("  ".join(table[-1]), flush=True)
    results = {"machine": describe_machine(), "measurements": measurements}
    headings = ["shape", "dtype", "threads", "dense ms", "grouped ms", "loop ms", "grouped / dense", "loop / dense"]
    text = [
        "# Mixture of experts beside a dense feed-forward of equal active FLOPs",
        machine_line(results["machine"]),
        f"One SwiGLU layer, forward and backward, router and its losses included, medians of {options.repeats} turns.",
        markdown_table(headings, table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
