"""Plain, blocked and fused causal attention, forward and backward: python -m benchmarks.attention.

Six heads of 64 over 4,096 tokens, cut into sequences of T. Shows where nn/attention.py should change its path; the
path that it takes is set in bold. The plain path's mask is made outside the timing: a network makes it once a step.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.nn.attention_paths import choose_path, fused_causal_attention, plain_attention
from lightning_gpt.nn.blocked_attention import blocked_causal_attention
from lightning_gpt.nn.masks import attention_mask

HEADS, HEAD_SIZE, TOKENS = 6, 64, 4096
PATHS = {"plain": plain_attention, "blocked": blocked_causal_attention, "fused": fused_causal_attention}


def measure(T: int, dtype: torch.dtype, repeats: int, device: torch.device, compiled: bool) -> dict[str, float]:
    """Median milliseconds of each path, taken in turns."""
    torch.manual_seed(0)
    B = max(TOKENS // T, 1)
    q, k, v = (torch.randn(B, HEADS, T, HEAD_SIZE, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    upstream = torch.randn(B, HEADS, T, HEAD_SIZE, dtype=dtype, device=device)
    position = torch.arange(T, device=device)
    mask = attention_mask(position, position, dtype)
    functions = {name: torch.compile(path, dynamic=False) if compiled else path for name, path in PATHS.items()}
    taken: dict[str, list[float]] = {name: [] for name in PATHS}
    for _ in range(repeats + 2):
        for name, path in functions.items():
            start = time.perf_counter()
            path(q, k, v, mask if name == "plain" else None, HEAD_SIZE**-0.5, 0.0).backward(upstream)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(1e3 * (time.perf_counter() - start))
            q.grad = k.grad = v.grad = None
    return {name: median(times[2:]) for name, times in taken.items()}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="compile the paths")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention.json"))
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device(options.device)
    measurements, table = [], []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for T in map(int, options.lengths.split(",")):
            times = measure(T, dtype, options.repeats, device, options.compile)
            path = choose_path(device, dtype, T, T, whole=True, dropout=False)
            chosen = next(name for name in PATHS if PATHS[name] is path)
            measurements.append({"dtype": name, "length": T, **times, "chosen": chosen})
            shown = [f"**{times[path]:.2f}**" if path == chosen else f"{times[path]:.2f}" for path in PATHS]
            right = "yes" if times[chosen] == min(times.values()) else "no"
            table.append([name, str(T), *shown, f"{min(times['plain'], times['fused']) / times[chosen]:.2f}", right])
            print("  ".join(table[-1]), flush=True)
    results = {"machine": describe_machine(), "compiled": options.compile, "measurements": measurements}
    headings = ["dtype", "T", *(f"{name} ms" for name in PATHS), "faster than plain and fused", "the fastest is chosen"]
    text = [
        "# Attention, forward and backward",
        machine_line(results["machine"]),
        f"{HEADS} heads of {HEAD_SIZE}, {TOKENS} tokens in sequences of T, {'compiled' if options.compile else 'eager'}"
        f", medians of {options.repeats} turns; bold: the path that the network takes.",
        markdown_table(headings, table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
