"""`lightning-gpt bench`: how fast a model generates on this machine."""

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_gpt.cli.generate import DType

if TYPE_CHECKING:
    import torch

    from lightning_gpt.nn import GPT

CacheName = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]


def bench_command(
    model: str,
    batch: str = "1,16",
    prompt: str = "64,512",
    new: int = 128,
    dtype: DType = "auto",
    cache: CacheName = "auto",
    device: str = "auto",
    repeats: int = 3,
    out: str | None = None,
) -> None:
    """Measure how fast a model generates: time to the first token, time between tokens, tokens/s, memory, and the
    shares of this machine's read bandwidth and matrix products that this takes.

    Rows of a batch begin together and take the likeliest token; scheduling and sampling are not in the figures. Bytes
    and operations are counted from the network, the machine's limits are measured in the same run. Threads are those
    of OMP_NUM_THREADS.

    Args:
        model: preset such as gpt2 or smollm2-135m (its shape, random weights), checkpoint, run directory, model
            directory or hub name.
        batch: rows side by side, such as 1,16.
        prompt: tokens of each prompt, such as 64,512.
        new: new tokens of each row.
        dtype: of the weights; auto = bfloat16 on GPUs, as stored on CPU.
        cache: of keys and values; auto = what is read fastest.
        device: auto, cpu, cuda, ...
        repeats: generations of each size.
        out: directory for bench.json and bench.png.
    """
    given = dict(locals())
    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.cli.generate import resolve_device, resolve_dtype
    from lightning_gpt.experiments.machine import hardware, hardware_in_words, versions
    from lightning_gpt.inference.bench import bench
    from lightning_gpt.inference.runners import make_runner
    from lightning_gpt.nn.caches import cache_type

    batches, prompts = numbers("batch", batch), numbers("prompt", prompt)
    where = resolve_device(device)
    net = opened(model, resolve_dtype(dtype, where), where)
    kind = None if cache == "auto" else cache_type(cache)
    runner = make_runner(net)
    found = bench(net, runner, batches, prompts, new, kind, repeats)
    content = {
        "model": model,
        "runner": type(runner).__name__,
        "command": command_line("bench", bench_command, given),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "hardware": hardware(),
        "versions": versions(),
        **found,
    }
    print(f"{model}, {hardware_in_words(content['hardware'])}")
    print(summary(content))
    if out is not None:
        print(f"written: {save(content, Path(out))}")


def numbers(name: str, text: str) -> list[int]:
    """ "1,16" -> [1, 16].

    Raises:
        ValueError: something else stands there.
    """
    try:
        return [int(word) for word in str(text).split(",")]
    except ValueError:
        raise ValueError(f"{name}={text} must be numbers with commas between them, such as 1,16") from None


def opened(model: str, dtype: "torch.dtype | None", device: "torch.device") -> "GPT":
    """The network: of a preset with random weights, else as stored.

    Raises:
        ValueError: the preset does not fit into memory.
    """
    import torch

    from lightning_gpt.nn import GPT
    from lightning_gpt.nn.flops import weight_bytes
    from lightning_gpt.nn.initialization import initialize
    from lightning_gpt.nn.presets import PRESETS

    if model not in PRESETS:
        from lightning_gpt.hub import open_model

        try:
            return open_model(model, dtype, device)[0].eval()
        except FileNotFoundError as error:
            near = difflib.get_close_matches(model, PRESETS, n=1)
            raise FileNotFoundError(f"{error}{f', or did you mean the preset {near[0]}?' if near else ''}") from None
    import psutil

    config = PRESETS[model]
    needed = weight_bytes(config, dtype or torch.float32)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(f"{model} has {needed / 2**30:.1f} GiB of weights, {free / 2**30:.1f} GiB are free here")
    with torch.device("meta"):
        net = GPT(config).to(dtype or torch.float32)
    net.to_empty(device=device)
    net.build_tables(device)
    initialize(net, config)
    return net.eval()


def summary(content: dict[str, Any]) -> str:
    """The table for the terminal."""
    limits, heading = content["limits"], ["batch", "prompt", "first token", "between tokens", "p95", "tokens/s"]
    heading += ["steps alone", "bandwidth", "FLOPs", "prompt FLOPs", "cache", "peak memory"]
    rows = [heading]
    for one in content["speeds"]:
        rows.append(
            [
                f"{one['batch']}",
                f"{one['prompt']}",
                f"{1e3 * one['first_token_seconds']:.4g} ms",
                f"{1e3 * one['inter_token_seconds']:.4g} ms",
                f"{1e3 * one['inter_token_seconds_p95']:.4g} ms",
                f"{one['tokens_per_second']:,.1f}",
                f"{one['decode_tokens_per_second']:,.1f}",
                f"{one['bandwidth_share']:.1%}",
                f"{one['flops_share']:.1%}",
                f"{one['prompt_flops_share']:.1%}",
                f"{one['cache_bytes'] / 2**20:,.1f} MiB",
                f"{one['peak_memory_bytes'] / 2**20:,.0f} MiB",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    weights, cache = content["weight_type"], content["cache"]
    return "\n".join(
        [
            f"{content['parameters']:,} parameters, {content['weight_bytes'] / 1e6:,.1f} MB of weights read a step "
            f"(mostly {weights}), keys and values in {cache}, computed by {content['runner']}",
            f"limits measured now: {limits['read_bytes_per_second'] / 1e9:.1f} GB/s read, "
            f"{limits['gemm_flops_per_second'] / 1e9:,.0f} GFLOP/s in products of {limits['gemm_type']}",
            *lines,
        ]
    )


def save(content: dict[str, Any], directory: Path) -> str:
    """Writes bench.json and bench.png, each whole or not at all; names them."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "bench.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    picture = directory / "bench.png"
    temporary = picture.with_suffix(".tmp")
    draw(content).savefig(temporary, dpi=110, format="png")
    os.replace(temporary, picture)
    return f"{path} {picture}"


def draw(content: dict[str, Any]) -> Any:
    """Over the batch size, a line for each prompt length: tokens/s, time between tokens with its p95, shares of the
    machine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    rate, wait, share = figure.subplots(1, 3)
    speeds = content["speeds"]
    sizes = sorted({one["batch"] for one in speeds})
    for number, prompt in enumerate(dict.fromkeys(one["prompt"] for one in speeds)):
        own = sorted((one for one in speeds if one["prompt"] == prompt), key=lambda one: one["batch"])
        x, style = [one["batch"] for one in own], {"marker": "o", "markersize": 4, "color": f"C{number}"}
        rate.plot(x, [one["tokens_per_second"] for one in own], label=f"prompt {prompt}", **style)
        wait.plot(x, [1e3 * one["inter_token_seconds"] for one in own], label=f"prompt {prompt}", **style)
        wait.plot(x, [1e3 * one["inter_token_seconds_p95"] for one in own], linestyle=":", **style)
        share.plot(x, [100 * one["bandwidth_share"] for one in own], label=f"bandwidth, prompt {prompt}", **style)
        share.plot(
            x, [100 * one["flops_share"] for one in own], linestyle="--", label=f"FLOPs, prompt {prompt}", **style
        )
    rate.set_ylabel("new tokens/s, prompts included")
    wait.set_ylabel("ms between tokens (dotted: p95)")
    share.set_ylabel("% of the machine's limit, steps alone")
    for panel in (rate, wait, share):
        panel.set_xlabel("batch size")
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [f"{size}" for size in sizes])
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(
        f"{content['model']}, weights {content['weight_type']}, keys and values {content['cache']}", fontsize=10
    )
    return figure
