"""`lightning-gpt plan memory`: what a training run will hold, when it holds most, and what would make it smaller."""

from collections import Counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_gpt.planning.memory_job import TrainingJob
    from lightning_gpt.planning.memory_levers import Lever
    from lightning_gpt.planning.memory_overhead import MemoryPlan


def plan_memory_command(
    fit: list[str] | None = None,
    devices: int | None = None,
    strategy: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    memory: str | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    figure: str | None = None,
) -> None:
    """Peak memory of the run that `lightning-gpt fit` would make of the same -c files and settings, part by part.

    Nothing is built. Predictions for CPU are measured by benchmarks/memory_plan.py; those for GPUs count the same
    tensors, with rough figures for CUDA and its allocator.

    Args:
        fit: -c files and dotted settings, said as fit takes them.
        devices: how many, instead of trainer.devices.
        strategy: single, ddp or fsdp, instead of trainer.strategy.
        device: cpu or cuda, instead of trainer.accelerator; no GPU is needed to plan for one.
        memory: of one device, such as 24GiB or 80GB, for the largest batch; null = what is free here.
        vocab_size: where the corpus is not prepared here.
        context: tokens of the key/value cache that is shown for generation; null = the network's block size.
        figure: PNG for the components, with the levers.
    """
    from lightning_gpt.cli.memory_settings import training_job
    from lightning_gpt.cli.settings_check import parsed_arguments
    from lightning_gpt.parallel.memory_size import parse_memory
    from lightning_gpt.planning.memory_levers import levers
    from lightning_gpt.planning.memory_overhead import largest_batch, plan_memory

    budget = None if memory is None else parse_memory(memory)
    settings = parsed_arguments(fit)
    job = training_job(settings, devices, strategy, device, vocab_size)
    context = context or job.config.block_size
    if not 1 <= context <= job.config.block_size:
        raise ValueError(f"context={context} must be between 1 and the model's block_size={job.config.block_size}")
    process = {"imported": _resident(), "curve": bool(settings.curve.enabled)}
    plan = plan_memory(job, **process)
    found = levers(plan, **process)
    said = memory or "this machine's free memory"
    budget = _free(job.device) if budget is None else budget
    print(_components(plan, bool(settings.model.init_args.get("compile"))))
    print(f"\n{_moments(plan)}")
    print(f"\n{_generation(job, context)}")
    print(f"\n{_levers(found)}")
    if budget is None:
        print("\nlargest batch: give --memory, such as --memory 24GiB")
    else:
        print(f"\n{_batch(job, largest_batch(job, budget, **process), budget, said)}")
    if figure:
        from pathlib import Path

        from lightning_gpt.planning.memory_figure import draw_memory

        print(f"\n{draw_memory(Path(figure), plan, found, budget if memory else None)}")


def _resident() -> float:
    """Of this process, which has imported what fit imports."""
    import psutil

    return psutil.Process().memory_info().rss


def _free(device: str) -> float | None:
    """Bytes that a run could take here now; None = there is no such device."""
    import torch

    from lightning_gpt.planning.memory_budget import free_memory

    if device == "cpu":
        return free_memory()
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)


RECOMPUTED = {
    "full": "recomputed",
    "selective": "recomputed but for products",
    "attention": "with attention recomputed",
    "feed_forward": "with the feed-forward recomputed",
    "offload": "kept by the host",
    "full_offload": "recomputed from inputs that the host keeps",
}


def _components(plan: "MemoryPlan", compiled: bool) -> str:
    from lightning_gpt.cli.plan import binary, count
    from lightning_gpt.nn.flops import parameters
    from lightning_gpt.planning.memory_activations import path_name
    from lightning_gpt.planning.memory_head import chunked
    from lightning_gpt.planning.memory_recompute import block_modes

    job = plan.job
    config = job.config
    where = f"{job.devices} x {job.device}, {job.strategy}" if job.devices > 1 else job.device
    paths = sorted({path_name(job, window, job.batch_size, job.block_size) for window in config.windows})
    head = "chunk by chunk" if chunked(job, job.tokens) else "at once"
    modes = Counter(block_modes(job))
    again = "".join(f", {count} blocks {RECOMPUTED[mode]}" for mode, count in modes.items() if mode != "none")
    again += ", optimizer in the backward pass" if job.steps_in_backward else ""
    lines = [
        f"{count(parameters(config))} parameters, {job.batch_size} x {job.block_size} tokens, {job.precision}, "
        f"{type(job.optimizer).__name__}, {where}",
        f"attention: {', '.join(paths)}; logits of {config.vocab_size:,} ids {head}{again}",
        "",
    ]
    rows = [(name, binary(size), f"{size / plan.total:.0%}") for name, size in plan.parts().items()]
    rows.append(("the peak", binary(plan.total), f"{plan.peak.name}"))
    lines.append(_table(rows))
    if job.device == "cuda":
        lines.append("not measured on a GPU: process and allocator are rough")
    if compiled:
        lines.append("compiled: counted as uncompiled, which keeps more for the backward pass")
    return "\n".join(lines)


def _moments(plan: "MemoryPlan") -> str:
    from lightning_gpt.cli.plan import binary
    from lightning_gpt.planning.memory_peak import moments

    rows = [(moment.name, binary(moment.total)) for moment in moments(plan.job)]
    return "tensors at each moment, without process and allocator\n" + _table(rows)


def _generation(job: "TrainingJob", context: int) -> str:
    import torch

    from lightning_gpt.cli.plan import binary
    from lightning_gpt.nn.flops import kv_cache_bytes

    dtype = torch.float32 if job.device == "cpu" else job.weight_dtype  # as inference/generation.py chooses it
    row = kv_cache_bytes(job.config, context, dtype)
    return f"key/value cache of generation: {binary(row)} a row of {context:,} tokens in {str(dtype)[6:]}"


def _levers(found: "list[Lever]") -> str:
    from lightning_gpt.cli.plan import binary

    if not found:
        return "levers: none of those known saves anything here"
    rows = [("lever", "saves", "leaves")]
    rows += [(lever.name, binary(lever.saved), binary(lever.plan.total)) for lever in found]
    settings = ["setting", *(lever.setting for lever in found)]
    return "\n".join(f"{line}  {setting}" for line, setting in zip(_padded(_table(rows)), settings))


def _padded(table: str) -> list[str]:
    lines = table.splitlines()
    width = max(map(len, lines))
    return [line.ljust(width) for line in lines]


def _batch(job: "TrainingJob", rows: int, budget: float, said: str) -> str:
    from lightning_gpt.cli.plan import binary

    room = f"{said} ({binary(budget)})" if said.startswith("this") else said
    if rows == 0:
        return f"largest batch: not even one window of {job.block_size} tokens fits into {room}: pull a lever"
    line = f"largest batch: {rows} windows of {job.block_size} tokens a device and forward pass in {room}"
    if rows >= job.batch_size:
        return line
    return (
        f"{line}; for the tokens of a step as configured: data.batch_size: {rows}, trainer.accumulate_grad_batches: "
        f"{-(-job.batch_size * job.accumulate // rows)}"
    )
