"""`lightning-gpt plan`: what a network costs, before anything is built."""

from pathlib import Path

import torch

from lightning_gpt.cli.plan_fit import plan_fit
from lightning_gpt.cli.plan_memory import plan_memory_command
from lightning_gpt.cli.plan_parallel import plan_parallel
from lightning_gpt.cli.plan_scaling import plan_scaling
from lightning_gpt.cli.plan_serving import plan_serving
from lightning_gpt.cli.plan_time import plan_time
from lightning_gpt.nn import GPTConfig, flops
from lightning_gpt.nn.presets import PRESETS


def named_config(model: str) -> GPTConfig:
    """The configuration of a preset or of a model directory.

    Raises:
        ValueError: neither; names the nearest presets.
    """
    if model in PRESETS:
        return PRESETS[model]
    if (Path(model) / "config.json").exists():
        from lightning_gpt.hub.huggingface import read_network_config

        return read_network_config(Path(model))
    import difflib

    near = difflib.get_close_matches(model, PRESETS, n=3)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"model={model} is neither a preset{hint} nor a model directory; presets: {', '.join(PRESETS)}")


def count(number: float, of: str = "") -> str:
    """1.557611e9 -> 1.558 G, in powers of a thousand, or 1.558 GFLOP."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.4g} {unit}{of}".strip()
        number /= 1000
    return f"{number:.4g} P{of}"


def binary(number: float) -> str:
    """Bytes in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def plan_model(model: str, context: int | None = None) -> None:
    """Layers, parameters, operations and cache bytes of a network, counted from its configuration.

    Args:
        model: preset such as gpt2, llama3-8b or mixtral-8x7b, or a model directory.
        context: tokens of a sequence, for operations and cache; null = the network's block size.
    """
    config = named_config(model)
    context = context or config.block_size
    if not 1 <= context <= config.block_size:
        raise ValueError(f"context={context} must be between 1 and the model's block_size={config.block_size}")
    total, active = flops.parameters(config), flops.parameters(config, active=True)
    windows = [window for window in config.windows if window]
    mixtures = sum(map(config.is_mixture, range(config.n_layer)))
    rows = [
        ("layers", f"{config.n_layer}" + (f", {mixtures} with experts" if mixtures else "")),
        ("width", f"{config.n_embd}, feed-forward {config.hidden_size} ({config.feed_forward})"),
        ("heads", f"{config.n_head} of {config.head_size}, key/value heads {config.kv_heads}"),
        ("positions", config.position + (f", scaled {config.rope_scaling.kind}" if config.rope_scaling else "")),
        ("window", f"{windows[0]} tokens in {len(windows)} layers" if windows else "none"),
        ("vocabulary", f"{config.vocab_size:,}" + (", tied head" if config.tie_embeddings else "")),
    ]
    if config.moe is not None:
        moe = config.moe
        shared = f" and {moe.shared} shared" if moe.shared else ""
        rows.append(("experts", f"{moe.experts}, {moe.top_k} a token{shared}, {config.expert_size} wide"))
        rows.append(("active parameters", f"{active:,} ({count(active)})"))
    forward = flops.forward_flops_per_token(config, context)
    per_token = flops.kv_cache_bytes_per_token(config, torch.bfloat16)
    cache = flops.kv_cache_bytes(config, context, torch.bfloat16)
    rows += [
        ("parameters", f"{total:,} ({count(total)})"),
        ("without embeddings", f"{flops.body_parameters(config):,}"),
        ("weights", f"{binary(4 * total)} in float32, {binary(2 * total)} in bfloat16"),
        ("context", f"{context:,} tokens"),
        ("forward", f"{count(forward, 'FLOP')} a token"),
        ("training", f"{count(flops.training_flops_per_token(config, context), 'FLOP')} a token"),
        ("cache", f"{binary(per_token)} a token in bfloat16, {binary(cache)} at this context"),
    ]
    width = max(len(name) for name, _ in rows)
    print(f"{model}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


PLANS = {
    "model": plan_model,
    "scaling": plan_scaling,
    "fit": plan_fit,
    "time": plan_time,
    "memory": plan_memory_command,
    "parallel": plan_parallel,
    "serving": plan_serving,
}
"""Subcommand -> function, in the form that jsonargparse takes."""
