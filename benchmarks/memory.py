"""Peak memory of the output head with its cross-entropy: python -m benchmarks.memory.

Forward and backward of the readable form (all logits in float32) and of ours (nn/loss.py), each in a process of its
own. The figure is what the pass adds at its peak to what was there before: hidden states and the head's matrix are not
in it, both gradients are.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from benchmarks.request import ROOT

VOCAB, WIDTH = 50304, 768
FORMS = ("naive", "ours")


def reset_peak() -> bool:
    """Forgets the process' peak; whether the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def one(form: str, tokens: int, bf16: bool, device: str) -> dict[str, float]:
    """{"bytes", "seconds", "loss"} of one pass in this process."""
    import torch

    from lightning_gpt.nn.loss import linear_cross_entropy, plain_linear_cross_entropy

    function = linear_cross_entropy if form == "ours" else plain_linear_cross_entropy
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(VOCAB, WIDTH, device=device)).requires_grad_()
    targets = torch.randint(VOCAB, (tokens,), device=device)

    def both_passes(count: int) -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss, number = function(hidden[:count], weight, targets[:count], VOCAB)
        (loss / number).backward()
        return (loss / number).item()

    both_passes(8)  # loads libraries and starts threads
    hidden.grad = weight.grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        if not reset_peak():
            raise SystemExit("this benchmark needs Linux or --device cuda")
        before = resident("VmRSS")
    start = time.perf_counter()
    loss = both_passes(tokens)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return {"bytes": peak - before, "seconds": seconds, "loss": loss}


def main() -> None:
    """Measures every form at every length, or one of them (a process that main starts)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1024,2048,4096", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        form, tokens, bf16 = options.one
        print(json.dumps(one(form, int(tokens), bf16 == "bf16", options.device)))
        return
    measurements, table = [], []
    for setting in ("fp32", "bf16"):
        for tokens in options.tokens.split(","):
            found = {}
            for form in FORMS:
                arguments = ["--device", options.device, "--one", form, tokens, setting]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.memory", *arguments], cwd=ROOT, capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                found[form] = json.loads(done.stdout.splitlines()[-1])
                measurements.append({"setting": setting, "tokens": int(tokens), "form": form, **found[form]})
            peaks = [found[form]["bytes"] for form in FORMS]
            seconds = [f"{found[form]['seconds']:.2f}" for form in FORMS]
            row = [setting, tokens, *(f"{peak / 2**20:,.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}", *seconds]
            table.append(row)
            print("  ".join(row), flush=True)
    results = {"machine": describe_machine(), "vocabulary": VOCAB, "width": WIDTH, "measurements": measurements}
    headings = ["setting", "tokens", "naive MiB", "ours MiB", "ratio", "naive s", "ours s"]
    text = [
        f"# Peak memory of head and cross-entropy, vocabulary {VOCAB}, width {WIDTH}",
        machine_line(results["machine"]),
        f"Forward and backward on {options.device}. The gradient of the head's matrix, "
        f"{VOCAB * WIDTH * 4 / 2**20:.0f} MiB, is in both figures.",
        markdown_table(headings, table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
