"""A proposal as what `lightning-gpt fit` is told: the trainer file to stack and what to set beside it."""

from dataclasses import fields

from lightning_gpt.nn import GPTConfig
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.parallel_layout import Cluster
from lightning_gpt.planning.parallel_plan import Proposal

FILES = {"ddp": "ddp", "fsdp": "fsdp", "hsdp": "fsdp", "tp": "tp", "fsdp_tp": "fsdp_tp"}
"""Strategy -> configs/trainer/<file>.yaml."""


def overrides(proposal: Proposal, base: TrainingJob, cluster: Cluster) -> dict[str, str]:
    """Dotted settings, in the order of reading."""
    layout = proposal.layout
    found = {
        "trainer.accelerator": "cpu" if base.device == "cpu" else "gpu",
        "trainer.devices": str(cluster.per_node),
        "trainer.num_nodes": str(cluster.nodes),
        "trainer.precision": base.precision,
        "trainer.accumulate_grad_batches": str(layout.accumulate),
    }
    if layout.strategy == "hsdp":
        found["trainer.strategy.shard_size"] = str(layout.shard)
    if layout.strategy == "fsdp_tp":
        found["trainer.strategy.tensor_parallel"] = str(layout.tensor)
    if layout.sync_every and layout.accumulate > 1:
        found["trainer.strategy.sync_while_accumulating"] = "true"
    return found | {
        "data.batch_size": str(layout.micro_batch),
        "data.block_size": str(base.block_size),
        "model.activation_checkpointing": str(layout.checkpoint_every),
        "model.optimizer": type(base.optimizer).__name__,
    }


def network_overrides(config: GPTConfig) -> dict[str, str]:
    """The fields of a proposed network that are not at their defaults; those that the data give are left out."""
    found = {}
    for field in fields(GPTConfig):
        value = getattr(config, field.name)
        if field.name in ("vocab_size", "block_size", "moe") or value == field.default:
            continue
        found[f"model.config.{field.name}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def command(proposal: Proposal, base: TrainingJob, cluster: Cluster, with_network: bool) -> str:
    """The command, a few settings a line.

    Args:
        proposal, base, cluster: of propose().
        with_network: whether the network is proposed too, and no file of the caller's has it.
    """
    settings = overrides(proposal, base, cluster)
    if with_network:
        settings = network_overrides(base.config) | settings
    first = f"lightning-gpt fit -c TOPIC.yaml -c configs/trainer/{FILES[proposal.layout.strategy]}.yaml"
    lines, line = [], first
    for key, value in settings.items():
        part = f" --{key} {value}"
        if len(line) + len(part) > 112:
            lines.append(line + " \\")
            line = "   "
        line += part
    return "\n".join(f"  {one}" for one in [*lines, line])


def hints(best: Proposal, base: TrainingJob) -> str:
    """What to try when no proposal fits."""
    found = []
    if best.layout.checkpoint_every != 1:
        found.append("--activation_checkpointing 1")
    if base.bytes.weights == 4:
        found.append("--precision bf16-true")
    if type(base.optimizer).__name__ == "AdamW":
        found.append("--optimizer AdamW8bit")
    return f"the least is {best.layout.title}, which {best.problem}; try {', '.join([*found, 'more devices'])}"
