"""What fewer key/value heads save while generating, and what they cost: python -m benchmarks.decode.

One network in its shapes of 16 to 1 key/value heads, a cache filled to the context, then one token at a time; shapes
take turns. The bytes are those of the keys and values that attention was handed. The losses are those of an experiment
that trained networks of as many queries a key. See benchmarks/README.md.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.experiments.report import variant_values
from lightning_gpt.experiments.results import load_results
from lightning_gpt.experiments.statistics import Estimate, estimate
from lightning_gpt.nn import GPT, GPTConfig, KVCache

HEADS, LAYERS, WIDTH, VOCAB = 16, 4, 1024, 1024
KV_HEADS = (16, 8, 4, 2, 1)
TRAINED = {1: "multi-head", 2: "grouped-2", 4: "multi-query"}
"""Queries a key -> variant of experiments/07_improvements/key_value_heads.yaml, which has four query heads."""


class CountingCache(KVCache):
    """A KVCache that counts the bytes it hands out."""

    handed_out = 0

    def update(self, layer, key_BHTD, value_BHTD, positions):
        """As KVCache."""
        keys, values = super().update(layer, key_BHTD, value_BHTD, positions)
        self.handed_out += keys.nbytes + values.nbytes
        return keys, values


@torch.inference_mode()
def measure(batch: int, context: int, dtype: torch.dtype, steps: int, device: torch.device) -> list[dict[str, float]]:
    """Of each number of key/value heads: bytes held, bytes handed out a step, median milliseconds."""
    nets, caches, taken = [], [], []
    for kv_heads in KV_HEADS:
        torch.manual_seed(0)
        config = GPTConfig(
            *(VOCAB, context, LAYERS, HEADS, WIDTH), n_kv_head=kv_heads, position="rotary", feed_forward="swiglu"
        )
        nets.append(GPT(config).to(device, dtype).eval())
        cache = CountingCache(config, batch, dtype=dtype, device=device)
        for stored in (*cache.keys, *cache.values):
            stored.normal_()
        cache.length = context - steps - 3  # as if so many tokens had been read
        caches.append(cache)
        taken.append([])
    token = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    for step in range(steps + 3):
        for net, cache, times in zip(nets, caches, taken):
            cache.handed_out = 0
            start = time.perf_counter()
            net(token, cache=cache)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step >= 3:
                times.append(1e3 * (time.perf_counter() - start))
    return [
        {
            "batch": batch,
            "context": context,
            "kv_heads": kv_heads,
            "cache_bytes": cache.nbytes,
            "read_bytes": cache.handed_out,
            "parameter_bytes": sum(parameter.nbytes for parameter in net.parameters()),
            "milliseconds": median(times),
        }
        for kv_heads, net, cache, times in zip(KV_HEADS, nets, caches, taken)
    ]


def losses(quality: Path) -> dict[int, Estimate]:
    """Queries a key -> validation loss with its interval, of a results.json."""
    results = load_results(quality.parent)
    return {
        queries: estimate(list(variant_values(results, variant, "val/loss").values()))
        for queries, variant in TRAINED.items()
    }


def draw(measurements: list[dict[str, float]], trained: dict[int, Estimate], path: Path) -> None:
    """Loss over tokens/s at the longest context, circles as large as the cache."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    longest = max(one["context"] for one in measurements)
    for one in measurements:
        loss = trained.get(HEADS // one["kv_heads"])
        if one["context"] != longest or loss is None:
            continue
        speed = 1e3 * one["batch"] / one["milliseconds"]
        axes.errorbar(speed, loss.mean, loss.half_width, color="gray", capsize=4, zorder=1)
        axes.scatter(speed, loss.mean, s=one["cache_bytes"] / 2**20, zorder=2)
        queries = HEADS // one["kv_heads"]
        label = f"{queries} {'query' if queries == 1 else 'queries'} a key,\n{one['cache_bytes'] / 2**20:,.0f} MiB"
        axes.annotate(label, (speed, loss.mean), textcoords="offset points", xytext=(12, 6), fontsize=8)
    axes.margins(x=0.4, y=0.3)
    axes.set(
        xlabel=f"tokens/s after {longest:,} tokens (circles: the cache)",
        ylabel="validation loss, nats per character",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--contexts", default="512,4096", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=24, help="timed tokens; default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decode.json"))
    parser.add_argument(
        "--quality",
        type=Path,
        default=Path("experiments/07_improvements/key_value_heads/results.json"),
        help="results.json with the losses; default: %(default)s",
    )
    options = parser.parse_args()
    trained = losses(options.quality)
    keep_freed_memory()
    measurements, table = [], []
    for context in map(int, options.contexts.split(",")):
        found = measure(options.batch, context, torch.bfloat16, options.steps, torch.device(options.device))
        measurements += found
        for one in found:
            whole = found[0]
            table.append(
                [
                    f"{context:,}",
                    f"{one['kv_heads']}",
                    f"{one['cache_bytes'] / 2**20:,.1f}",
                    f"{one['read_bytes'] / 2**20:,.1f}",
                    f"{one['read_bytes'] / whole['read_bytes']:.4f}",
                    f"{one['milliseconds']:.2f}",
                    f"{1e3 * options.batch / one['milliseconds']:,.0f}",
                    f"{whole['milliseconds'] / one['milliseconds']:.2f}",
                    trained[queries].text() if (queries := HEADS // one["kv_heads"]) in trained else "-",
                ]
            )
            print("  ".join(table[-1]), flush=True)
    results = {"machine": describe_machine(), "measurements": measurements}
    headings = [
        "context",
        "key/value heads",
        "cache MiB",
        "read MiB a step",
        "of 16 heads'",
        "ms",
        "tokens/s",
        "faster",
        "val/loss when trained",
    ]
    text = [
        "# Generating with fewer key/value heads",
        machine_line(results["machine"]),
        f"{LAYERS} layers, width {WIDTH}, {HEADS} query heads of {WIDTH // HEADS}, {options.batch} rows, bfloat16, the "
        f"cache full; medians of {options.steps} tokens. Read: the keys and values that attention was handed in one "
        "step. Losses: four query heads of 32, equal parameters and steps, 95% interval over seeds "
        f"(`{options.quality.as_posix()}`).",
        markdown_table(headings, table),
    ]
    draw(measurements, trained, options.out.with_suffix(".png"))
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
