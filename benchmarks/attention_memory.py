"""Peak memory of attention over the length of a sequence: python -m benchmarks.attention_memory.

Forward and backward of one layer's attention, each form in a process of its own: the readable one, which holds T x T
weights for every head, the path that the network takes, and the same with a sliding window.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.memory import reset_peak, resident
from benchmarks.report import markdown_table, write_report
from benchmarks.request import ROOT

HEADS, HEAD_SIZE, WINDOW = 8, 64, 256
FORMS = ("plain", "chosen", "window")


def one(form: str, tokens: int, device: str) -> int:
    """Bytes that one pass of this process adds at its peak, in bfloat16."""
    import torch

    from lightning_gpt.nn.attention_paths import choose_path, make_sight, plain_attention

    torch.manual_seed(0)
    bf16, where = torch.bfloat16, torch.device(device)

    def both_passes(T: int) -> None:
        q, k, v = (torch.randn(1, HEADS, T, HEAD_SIZE, dtype=bf16, device=device, requires_grad=True) for _ in range(3))
        window = WINDOW if form == "window" else None
        path = plain_attention if form == "plain" else choose_path(where, bf16, T, T, True, False, window)
        position = torch.arange(T, device=device)
        attend, mask = make_sight(path, position, position, bf16, window)
        attend(q, k, v, mask, HEAD_SIZE**-0.5, 0.0).sum().backward()

    both_passes(512 if form == "window" else 16)  # loads libraries and starts threads
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both_passes(tokens)
        return torch.cuda.max_memory_allocated() - before
    if not reset_peak():
        raise SystemExit("this benchmark needs Linux or --device cuda")
    before = resident("VmRSS")
    both_passes(tokens)
    return resident("VmHWM") - before


def main() -> None:
    """Measures every form at every length, or one of them (a process that main starts)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1024,2048,4096,8192,16384", help="default: %(default)s")
    parser.add_argument("--plain-up-to", type=int, default=8192, help="plain is left out beyond; default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attention_memory.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options.device)))
        return
    measurements, table = [], []
    for tokens in map(int, options.tokens.split(",")):
        row = [f"{tokens:,}"]
        for form in FORMS:
            if form == "plain" and tokens > options.plain_up_to:
                row.append("-")
                continue
            command = [sys.executable, "-m", "benchmarks.attention_memory", "--device", options.device]
            done = subprocess.run(
                [*command, "--one", form, str(tokens)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found = json.loads(done.stdout.splitlines()[-1])
            measurements.append({"tokens": tokens, "form": form, "bytes": found})
            row.append(f"{found / 2**20:,.0f}")
        table.append(row)
        print("  ".join(row), flush=True)
    results = {"machine": describe_machine(), "heads": HEADS, "head_size": HEAD_SIZE, "measurements": measurements}
    text = [
        "# Peak memory of attention, forward and backward, in MiB",
        machine_line(results["machine"]),
        f"One sequence, {HEADS} heads of {HEAD_SIZE}, bfloat16, on {options.device}; queries, keys, values and their "
        f"gradients are in the figures. The window is {WINDOW} tokens.",
        markdown_table(["tokens", "plain", "the path that the network takes", "with a window"], table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
