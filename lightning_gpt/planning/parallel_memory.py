"""Memory of one device under a layout, by the planner of single runs (memory_overhead.py)."""

from dataclasses import replace

from lightning_gpt.nn import GPTConfig
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_overhead import MemoryPlan, plan_memory
from lightning_gpt.planning.memory_peak import Moment
from lightning_gpt.planning.memory_states import gradient_bytes
from lightning_gpt.planning.parallel_layout import Layout


def sliced(config: GPTConfig, tensor: int) -> GPTConfig:
    """The part of a network that one device of a tensor-parallel group holds: its heads, its columns of the
    feed-forward and its ids of the vocabulary, while the stream between them stays whole (Shoeybi et al., 2019)."""
    if tensor == 1:
        return config
    multiple = config.vocab_multiple * tensor
    return replace(
        config,
        n_head=config.n_head // tensor,
        n_kv_head=config.kv_heads // tensor,
        head_dim=config.head_size,
        ffn_hidden=config.hidden_size // tensor,
        vocab_size=-(-config.vocab_size // multiple) * config.vocab_multiple,
    )


def job_of(base: TrainingJob, layout: Layout) -> TrainingJob:
    """The run that one device makes.

    Args:
        base: network, tokens of a window, optimizer, precision and device.
        layout: how it is spread.
    """
    strategy, devices = "single", 1
    if layout.strategy == "ddp" and layout.devices > 1:
        strategy, devices = "ddp", layout.replicas
    elif layout.shard > 1:
        strategy, devices = "fsdp", layout.shard
    return replace(
        base,
        config=sliced(base.config, layout.tensor),
        batch_size=layout.micro_batch,
        strategy=strategy,
        devices=devices,
        accumulate=layout.accumulate,
        activation_checkpointing=layout.checkpoint_every,
    )


def memory_of(base: TrainingJob, layout: Layout) -> MemoryPlan:
    """What one device needs at its fullest moment."""
    plan = plan_memory(job_of(base, layout))
    if layout.shard == 1 or layout.accumulate == 1 or layout.sync_every:
        return plan
    # Gradients that are not scattered yet are whole; the planner of single runs counts their shards.
    whole = gradient_bytes(replace(plan.job, strategy="single", devices=1))
    parts = plan.peak.parts
    more = whole - gradient_bytes(plan.job)
    return replace(plan, peak=Moment(plan.peak.name, {**parts, "gradients": parts["gradients"] + more}))
