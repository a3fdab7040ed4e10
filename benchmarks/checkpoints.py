"""What saving costs training, at once and in the background: python -m benchmarks.checkpoints.

GPT-2 124M with AdamW's states, 1.5 GB a checkpoint. A window is a save and then optimizer steps that go on for longer
than the background takes to write; windows without a save, with one at once and with one in the background take turns
in one process. A save's cost is what its window took longer than the one without in the same round, so what the writer
takes from the steps (processor, memory bandwidth) counts, not only how long the call blocks.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.callbacks import AtomicCheckpointIO
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.nn import GPT
from lightning_gpt.nn.presets import PRESETS

SAVES = {
    "whole file, at once": {},
    "whole file, in the background": {"asynchronous": True},
    "sharded, at once": {"sharded": True},
    "sharded, in the background": {"sharded": True, "asynchronous": True},
}


class Training:
    """A loop with what a step of training touches."""

    def __init__(self, preset: str, tokens: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.net = GPT(PRESETS[preset]).to(device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), fused=True)
        self.ids = torch.randint(self.net.config.vocab_size, (1, tokens + 1), device=device)

    def steps(self, count: int) -> None:
        """Forward, backward, update."""
        for _ in range(count):
            with torch.autocast(self.device.type, torch.bfloat16):
                loss_sum, tokens, *_ = self.net.loss(self.ids[:, :-1], self.ids[:, 1:])
            (loss_sum / tokens).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def checkpoint(self) -> dict[str, Any]:
        """As Lightning's."""
        return {"state_dict": self.net.state_dict(), "optimizer_states": [self.optimizer.state_dict()]}


def window(
    training: Training, io: AtomicCheckpointIO, path: Path, options: dict | None, steps: int
) -> dict[str, float]:
    """Seconds of one window: of the whole, of the call that saves, until the file is there."""
    start = time.perf_counter()
    if options is not None:
        io.save_checkpoint(training.checkpoint(), path, options)
    blocked = time.perf_counter() - start
    written = blocked
    for _ in range(steps):
        training.steps(1)
        if io._pending is not None and not io._pending.done():
            written = time.perf_counter() - start
    whole = time.perf_counter() - start
    io.wait()
    return {"window": whole, "blocked": blocked, "written": written, "late": time.perf_counter() - start - whole}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt2", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=30, help="of a window; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="of a step; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of training; default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--place", default=None, help="where the files go; default: the system's temporary directory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoints/report.json"))
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    training, io = Training(options.preset, options.tokens, torch.device(options.device)), AtomicCheckpointIO()
    place = Path(tempfile.mkdtemp(dir=options.place))
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ("no save", *SAVES)}
    loads = []
    try:
        for round_number in range(options.rounds + 1):  # the first warms up: buffers, allocator, page cache
            for name in taken:
                loads.append(os.getloadavg()[0])
                result = window(training, io, place / "last.ckpt", SAVES.get(name), options.steps)
                print(f"{name:32}" + "  ".join(f"{key} {value:6.2f}" for key, value in result.items()), flush=True)
                if round_number:
                    taken[name].append(result)
        written = sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and not file.is_symlink())
    finally:
        shutil.rmtree(place)
    report(taken, loads, written, options)


def report(
    taken: dict[str, list[dict[str, float]]], loads: list[float], size: int, options: argparse.Namespace
) -> None:
    """Tables from the windows."""
    cost = {
        name: [one["window"] - none["window"] for one, none in zip(taken[name], taken["no save"])] for name in SAVES
    }
    rows = []
    for name in SAVES:
        kind = name.split(",")[0]
        at_once = cost[f"{kind}, at once"]
        ratios = [100 * ours / theirs for ours, theirs in zip(cost[name], at_once)]
        calls = [one["blocked"] for one in taken[name]]
        blocked = 100 * median(calls) / median(one["blocked"] for one in taken[f"{kind}, at once"])
        spread = f"{median(ratios):.0f}% ({min(ratios):.0f} to {max(ratios):.0f})"
        rows.append([name, f"{median(calls):.2f}", f"{blocked:.1f}%", f"{median(cost[name]):.2f}", spread])
    steps = [(one["window"] - one["blocked"]) / options.steps for one in taken["no save"]]
    machine = describe_machine()
    late = max(one["late"] for windows in taken.values() for one in windows)
    headings = ["save", "call, s", "of at once", "cost, s", "of at once (range over rounds)"]
    told = [
        "The call is how long training stands still. The cost is what the window took longer than the one without a "
        "save beside it: it holds the writer's share of processor and memory too. On a CPU the writer takes these from "
        "training; on a GPU training hardly needs them.",
    ]
    if late > 0.1:  # the steps of the next window paid for this one's writer
        headings, rows = headings[:3], [row[:3] for row in rows]
        told = [
            f"The call is how long training stands still. Windows were too short for the writer (by {late:.0f} s), so "
            "what it takes from the steps beside it is not in the table: that needs more --steps on a quiet machine."
        ]
    text = [
        "# What a save costs training",
        f"    python -m benchmarks.checkpoints --rounds {options.rounds} --steps {options.steps} "
        f"--device {options.device} --threads {options.threads}",
        f"{machine_line(machine)}; training on {options.threads} thread(s), {options.preset} with AdamW, "
        f"{size / 1e9:.2f} GB a checkpoint, {median(steps):.2f} s a step, {options.rounds} rounds after one to warm "
        f"up; load average {min(loads):.1f} to {max(loads):.1f}.",
        markdown_table(headings, rows),
        *told,
        "Every save is flushed to disk, read back and compared by checksum before the old one goes.",
    ]
    write_report(options.out, {"machine": machine, "loads": loads, "bytes": size, "windows": taken}, "\n\n".join(text))


if __name__ == "__main__":
    main()
