"""Memory against speed of what a network computes again: python -m benchmarks.recompute --device cuda.

Each way takes the same steps of the same network; peak memory is PyTorch's allocator's on a GPU, and on CPU what the
forward pass keeps for the backward pass. Gradients of the first step are compared with those of the plain way: with
--deterministic bit for bit.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.optim import AdamW, InBackward
from lightning_gpt.parallel.recompute import recompute

SETTINGS = (0, 2, "full", "selective", "attention", "feed_forward", 0.5, 0.25, "offload", "full_offload")
NETWORKS = {
    "gpt": {"position": "learned"},
    "dropout": {"position": "learned", "dropout": 0.1},
    "llama": {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu"},
    "window": {"position": "rotary", "norm": "rmsnorm", "window": 256},
}


class Kept(saved_tensors_hooks):
    """Counts the bytes of storages that wait for the backward pass, but for parameters."""

    def __init__(self, net: GPT) -> None:
        self.own = {one.untyped_storage().data_ptr() for one in net.parameters()}
        self.storages: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, a graph would hold its own results for ever


def measured(options: argparse.Namespace, setting: int | float | str, in_backward: bool) -> dict:
    """One way: peak memory, tokens/s, the last loss, and the first step's gradients."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    shape = {"n_layer": options.layers, "n_embd": options.width, "n_head": options.width // options.head}
    config = GPTConfig(50304, options.tokens, bias=False, **shape, **NETWORKS[options.network])
    with device:
        net = GPT(config).train()
    recompute(net, setting, options.compile)
    optimizer = AdamW().build(net)
    optimizer = InBackward(optimizer) if in_backward else optimizer
    loss_of = torch.compile(net.loss) if options.compile else net.loss
    ids = torch.randint(config.vocab_size, (options.rows, options.tokens), device=device)
    gradients, ends, loss, kept = [], [], None, 0
    for step in range(options.steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        with torch.autocast(device.type, torch.bfloat16):
            if device.type == "cpu" and step == 1:
                counting = Kept(net)
                with counting:
                    total, count = loss_of(ids, ids.roll(1))
                kept = sum(counting.storages.values())
            else:
                total, count = loss_of(ids, ids.roll(1))
        loss = total / count
        loss.backward()
        if step == 0 and not in_backward:
            gradients = [parameter.grad.float().norm().item() for parameter in net.parameters()]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
            if step == 1:  # states are there, a budget is chosen
                torch.cuda.reset_peak_memory_stats()
        ends.append(time.perf_counter())
    seconds = sorted(later - earlier for earlier, later in pairwise(ends[1:]))
    return {
        "setting": f"{setting}{', optimizer in backward' if in_backward else ''}",
        "bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else kept,
        "tokens_per_second": ids.numel() / seconds[len(seconds) // 2],
        "loss": loss.item(),
        "gradient_norms": gradients,
    }


def ways(options: argparse.Namespace) -> Iterator[tuple[int | float | str, bool]]:
    """(setting, whether the optimizer steps in the backward pass)."""
    chosen = [int(one) if one.isdigit() else float(one) if "." in one else one for one in options.settings.split(",")]
    yield from ((setting, False) for setting in chosen)
    if not options.compile:
        yield from ((setting, True) for setting in (0, "full"))


def main() -> None:
    """Measures every way and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recompute", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="gpt", choices=NETWORKS)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--head", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--settings", default=",".join(map(str, SETTINGS)))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--deterministic", action="store_true", help="slower kernels whose sums keep their order")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recompute.json"))
    options = parser.parse_args()
    torch.use_deterministic_algorithms(options.deterministic)
    rows, table = [], []
    for setting, in_backward in ways(options):
        try:
            row = measured(options, setting, in_backward)
        except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:
            print(f"{setting}: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            continue
        first = rows[0] if rows else row
        same = not row["gradient_norms"] or row["gradient_norms"] == first["gradient_norms"]
        rows.append(row | {"same_gradients": same and (row["loss"] == first["loss"] or not options.deterministic)})
        speed = row["tokens_per_second"]
        cells = [row["setting"], f"{row['bytes'] / 2**30:.2f}", f"{row['bytes'] / first['bytes']:.0%}", f"{speed:,.0f}"]
        table.append([*cells, f"{speed / first['tokens_per_second']:.0%}", f"{row['loss']:.6f}"])
        print("  ".join([*table[-1], str(rows[-1]["same_gradients"])]), flush=True)
    for row in rows:
        row.pop("gradient_norms")
    what = "peak of the allocator" if options.device == "cuda" else "kept for the backward pass"
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("out", "settings")}
    machine = describe_machine()
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    text = [
        f"# Memory against speed of what is computed again, {options.layers} layers of width {options.width}",
        machine_line(machine) + gpu,
        f"`{options.network}`, {options.rows} x {options.tokens} tokens, bf16 autocast, AdamW, "
        f"{'compiled' if options.compile else 'eager'}; memory is the {what}.",
        markdown_table(["activation_checkpointing", "GiB", "share", "tokens/s", "share", "last loss"], table),
    ]
    write_report(options.out, {"machine": machine, "settings": settings, "ways": rows}, "\n\n".join(text))


if __name__ == "__main__":
    main()
