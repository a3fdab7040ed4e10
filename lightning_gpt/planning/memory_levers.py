"""What would make a run smaller, and by how much: every lever is the same plan of a changed run."""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from lightning_gpt.optim import AdamW, AdamW8bit, MuonAdamW
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_overhead import MemoryPlan, plan_memory

DEVICES = 8
"""Of the lever that shards a run of one device."""


@dataclass(frozen=True)
class Lever:
    """One change."""

    name: str
    setting: str
    """As it is said to `lightning-gpt fit`."""
    plan: MemoryPlan
    saved: float
    """Bytes of each device."""


def changes(job: TrainingJob) -> Iterator[tuple[str, str, TrainingJob]]:
    """(name, setting, changed run) of every lever that this run has not pulled. Those of the network make another
    network; the others the same, or nearly."""
    config = job.config
    setting = job.activation_checkpointing
    for name, other in (
        ("recompute every block", "full"),
        ("recompute what is cheap", "selective"),
        ("keep half of the activations", 0.5),
    ):
        if setting != other and not (other == "full" and setting == 1):
            changed = replace(job, activation_checkpointing=other)
            yield name, f"model.activation_checkpointing: {other}", changed
    if job.device == "cuda" and setting != "full_offload":
        name, changed = "blocks' inputs in the host's memory", replace(job, activation_checkpointing="full_offload")
        yield name, "model.activation_checkpointing: full_offload", changed
    if not job.steps_in_backward and job.accumulate == 1 and job.strategy != "ddp":
        stepping = copy(job.optimizer)
        stepping.in_backward = True
        name, said = "optimizer in the backward pass", "model.optimizer.in_backward: true"
        yield name, f"{said}, trainer.gradient_clip_val: null", replace(job, optimizer=stepping)
    if job.precision == "32-true":
        yield "products in bfloat16", "trainer.precision: bf16-mixed", replace(job, precision="bf16-mixed")
    if job.bytes.weights == 4:
        yield "everything in bfloat16", "trainer.precision: bf16-true", replace(job, precision="bf16-true")
    optimizer = job.optimizer
    if isinstance(optimizer, AdamW | MuonAdamW):
        yield "states in 8 bits", "model.optimizer: AdamW8bit", replace(job, optimizer=AdamW8bit())
    if isinstance(optimizer, AdamW | AdamW8bit):
        yield "one state a matrix", "model.optimizer: MuonAdamW", replace(job, optimizer=MuonAdamW())
    rows = job.batch_size
    for part in sorted({math.ceil(rows / 2), 1} - {rows}, reverse=True) if not job.steps_in_backward else ():
        steps = math.ceil(job.accumulate * rows / part)
        setting = f"data.batch_size: {part}, trainer.accumulate_grad_batches: {steps}"
        kept = job.validation[0] if job.val_batch_size is None else job.val_batch_size
        small = replace(job, batch_size=part, accumulate=steps, val_batch_size=min(kept, part))
        yield f"micro-batches of {part}", f"{setting}, data.val_batch_size: {small.val_batch_size}", small
    if job.validation[0] > rows:
        yield "validate in smaller batches", f"data.val_batch_size: {rows}", replace(job, val_batch_size=rows)
    if job.strategy != "fsdp" or job.devices == 1:
        devices = job.devices if job.devices > 1 else DEVICES
        sharded = replace(job, strategy="fsdp", devices=devices)
        yield f"shard over {devices} devices", "configs/trainer/fsdp.yaml", sharded
    if job.strategy == "ddp" and job.devices > 1 and not job.bucket_view:
        strategy = "trainer.strategy.gradient_as_bucket_view: true"
        yield "gradients in DDP's buckets", strategy, replace(job, bucket_view=True)
    networks: list[tuple[str, dict[str, Any]]] = []
    if not config.tie_embeddings:
        networks.append(("head tied to the embedding", {"tie_embeddings": True}))
    if config.dropout:
        networks.append(("no dropout", {"dropout": 0.0}))
    if config.kv_heads > 1:
        fewer = config.n_head // 4 if config.kv_heads == config.n_head and config.n_head % 4 == 0 else 1
        networks.append((f"{fewer} key/value head" + "s" * (fewer > 1), {"n_kv_head": fewer}))
    for name, fields in networks:
        ((field, value),) = fields.items()
        setting = f"model.config.{field}: {str(value).lower()}"
        yield name, setting, replace(job, config=replace(config, **fields))


def levers(plan: MemoryPlan, **settings: Any) -> list[Lever]:
    """All that save something, what saves most first.

    Args:
        plan: of the run as it is.
        settings: as of plan_memory.
    """
    found = []
    for name, setting, job in changes(plan.job):
        changed = plan_memory(job, **settings)
        if changed.total < plan.total:
            found.append(Lever(name, setting, changed, plan.total - changed.total))
    return sorted(found, key=lambda lever: -lever.saved)
