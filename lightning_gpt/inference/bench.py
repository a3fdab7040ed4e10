"""Speeds of generation over batch sizes and prompt lengths, beside what the machine could do."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from lightning_gpt.inference.measure import BLOCK_SIZE, Timing, random_prompts, time_generation
from lightning_gpt.inference.runner import Runner
from lightning_gpt.inference.step_work import decode_bytes, decode_flops, prompt_flops, weight_bytes, weight_type
from lightning_gpt.nn import GPT
from lightning_gpt.nn.caches import CacheType
from lightning_gpt.nn.machine_limits import gemm_flops, read_bandwidth

WARM_UP_TOKENS = 3


@dataclass(frozen=True)
class Limits:
    """Of the machine, measured."""

    read_bytes_per_second: float
    gemm_flops_per_second: float
    gemm_type: str


@dataclass(frozen=True)
class Speed:
    """Of one batch size and prompt length."""

    batch: int
    prompt: int
    new: int
    first_token_seconds: float
    """Median over rows: from the beginning to a row's first token."""
    inter_token_seconds: float
    """Median over steps."""
    inter_token_seconds_p95: float
    tokens_per_second: float
    """New tokens of all rows over the whole time, prompts included; median over repetitions."""
    decode_tokens_per_second: float
    """New tokens of all rows over the time of a step."""
    peak_memory_bytes: int
    cache_bytes: int
    step_bytes: float
    """Bytes that a step must read, mean over the steps."""
    step_flops: float
    bandwidth_share: float
    """step_bytes over the time of a step and the read bandwidth."""
    flops_share: float
    """step_flops over the time of a step and the rate of matrix products."""
    prompt_flops_share: float
    """Operations of reading the prompts over the time until the last row's first token, and the rate."""


def measure_limits(net: GPT) -> Limits:
    """What the device of the network can read and compute, in the type of most of its weights (of 4-bit ones in that in
    which they are computed)."""
    device, dtype = net.token_embedding.weight.device, weight_type(net)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        dtype = net.token_embedding.weight.dtype
    return Limits(read_bandwidth(device), gemm_flops(dtype, device=device), _name(dtype))


def time_case(
    net: GPT, runner: Runner, case: tuple[int, int], new: int, cache: CacheType | None, repeats: int
) -> Timing:
    """Some generations of one size, rows and tokens of a prompt, after a warm-up with the same prompts."""
    prompts = random_prompts(net.config.vocab_size, *case)
    time_generation(runner, prompts, min(new, WARM_UP_TOKENS), cache)
    timing = Timing()
    for _ in range(repeats):
        timing += time_generation(runner, prompts, new, cache)
    return timing


def speed_of(net: GPT, timing: Timing, limits: Limits, case: tuple[int, int], new: int, cache: CacheType) -> Speed:
    """What the timings of one size say.

    Args:
        net: whose bytes and operations are counted.
        timing: of time_case.
        limits: of measure_limits.
        case: rows, and tokens of each prompt.
        new: tokens of each row.
        cache: type of keys and values.
    """
    batch, prompt = case
    contexts = range(prompt + 1, prompt + new)
    step_bytes = sum(decode_bytes(net, batch, context, cache) for context in contexts) / len(contexts)
    step_flops = sum(decode_flops(net.config, batch, context) for context in contexts) / len(contexts)
    step = median(timing.steps)
    return Speed(
        batch=batch,
        prompt=prompt,
        new=new,
        first_token_seconds=median(timing.first),
        inter_token_seconds=step,
        inter_token_seconds_p95=sorted(timing.steps)[round(0.95 * (len(timing.steps) - 1))],
        tokens_per_second=batch * new / median(timing.whole),
        decode_tokens_per_second=batch / step,
        peak_memory_bytes=timing.peak_bytes,
        cache_bytes=timing.cache_bytes,
        step_bytes=step_bytes,
        step_flops=step_flops,
        bandwidth_share=step_bytes / step / limits.read_bytes_per_second,
        flops_share=step_flops / step / limits.gemm_flops_per_second,
        prompt_flops_share=prompt_flops(net.config, *case) / max(timing.first) / limits.gemm_flops_per_second,
    )


def bench(
    net: GPT,
    runner: Runner,
    batches: Sequence[int],
    prompts: Sequence[int],
    new: int,
    cache: CacheType | None = None,
    repeats: int = 3,
    say: bool = True,
) -> dict[str, Any]:
    """Every batch size with every prompt length: {"weight_bytes", "cache", "limits", "speeds"}, ready for JSON.

    Args:
        net: in evaluation mode; its bytes and operations are counted.
        runner: computes.
        new: tokens of each row.
        cache: type of keys and values; None = the runner's choice.
        repeats: generations of each size.
        batches: batch sizes.
        prompts: prompt lengths.
        say: tell on stderr which is measured.

    Raises:
        ValueError: more tokens than the network's context, or too few to time; before anything is measured.
    """
    if new < 2:
        raise ValueError(f"new={new} must be at least 2: the time between tokens is measured")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    for name, values in (("batch", batches), ("prompt", prompts)):
        if not values or min(values) < 1:
            raise ValueError(f"{name}={','.join(map(str, values))} must be numbers of at least 1")
    if (longest := max(prompts) + new - 1) > net.config.block_size:
        raise ValueError(
            f"prompt={max(prompts)} and new={new} need {longest} positions, the network has block_size="
            f"{net.config.block_size}: shorten one of them"
        )
    cases = [(batch, prompt) for batch in batches for prompt in prompts]
    timings = []
    for number, case in enumerate(cases, start=1):
        if say:
            print(f"case {number}/{len(cases)}: batch {case[0]}, prompt {case[1]}", file=sys.stderr, flush=True)
        timings.append(time_case(net, runner, case, new, cache, repeats))
    limits = measure_limits(net)  # last: what it reads would count as memory of the cases
    kept = cache or runner.make_cache(1, BLOCK_SIZE).dtype  # no runner quantizes it unasked
    speeds = [speed_of(net, timing, limits, case, new, kept) for case, timing in zip(cases, timings)]
    return {
        "weight_bytes": weight_bytes(net),
        "weight_type": _name(weight_type(net)),
        "cache": _name(kept),
        "repeats": repeats,
        "limits": asdict(limits),
        "speeds": [asdict(speed) for speed in speeds],
    }


def _name(kind: CacheType) -> str:
    return str(kind).removeprefix("torch.")
