"""Bytes that stay from step to step - weights, gradients, optimizer states - and what strategies add to them."""

import math
from collections import Counter

from lightning_gpt.optim import SGD, AdamW, AdamW8bit, MuonAdamW, OptimizerSpec
from lightning_gpt.optim.muon import MAX_STACKED_ELEMENTS
from lightning_gpt.planning.memory_job import Parameter, TrainingJob, inventory

BLOCK_8BIT = 256
"""Numbers that share a scale in bitsandbytes' block-wise 8-bit states (Dettmers et al., 2022)."""


def local_numbers(parameter: Parameter, shards: int) -> int:
    """Of a parameter on the device that has most of it: FSDP2 cuts along the first dimension, in equal rows."""
    if not parameter.shape:
        return 1
    rows = -(-parameter.shape[0] // shards)
    return rows * math.prod(parameter.shape[1:])


def weight_bytes(job: TrainingJob) -> int:
    """Weights and tables of positions; the tables are whole on every device."""
    parameters, tables = inventory(job.config)
    return job.bytes.weights * sum(local_numbers(one, job.shards) for one in parameters) + tables


def gradient_bytes(job: TrainingJob, layers: range | None = None) -> int:
    """Gradients of all parameters, or of those of some blocks."""
    parameters, _ = inventory(job.config)
    chosen = (one for one in parameters if layers is None or one.layer in layers)
    return job.bytes.weights * sum(local_numbers(one, job.shards) for one in chosen)


def largest_gradient_bytes(job: TrainingJob, layers: range) -> int:
    """Of one parameter of some blocks: what is there at a time when each is updated at once."""
    parameters, _ = inventory(job.config)
    return job.bytes.weights * max(local_numbers(one, job.shards) for one in parameters if one.layer in layers)


def state_bytes(optimizer: OptimizerSpec, parameter: Parameter, numbers: int, weight: int) -> int:
    """What an optimizer keeps for one parameter.

    Args:
        optimizer: its description.
        parameter: kind and shape.
        numbers: how many of its numbers are here.
        weight: bytes of one.

    Raises:
        ValueError: an optimizer that is not of lightning_gpt.optim.
    """
    if isinstance(optimizer, AdamW8bit):
        if parameter.kind == "embeddings" or numbers < optimizer.min_8bit_size:
            return 2 * 4 * numbers
        return 2 * numbers + 2 * 4 * -(-numbers // BLOCK_8BIT)
    if isinstance(optimizer, AdamW) or (isinstance(optimizer, MuonAdamW) and parameter.kind != "hidden"):
        return 2 * weight * numbers + 4  # and the step
    if isinstance(optimizer, MuonAdamW):
        return weight * numbers
    if isinstance(optimizer, SGD):
        return weight * numbers if optimizer.momentum else 0
    raise ValueError(
        f"model.optimizer={type(optimizer).__name__} is unknown to the memory planner: it knows AdamW, AdamW8bit, "
        "MuonAdamW and SGD"
    )


def optimizer_bytes(job: TrainingJob) -> int:
    """States of all parameters after the first step."""
    parameters, _ = inventory(job.config)
    total = sum(state_bytes(job.optimizer, p, local_numbers(p, job.shards), job.bytes.weights) for p in parameters)
    if isinstance(job.optimizer, AdamW8bit):
        total += 2 * 4 * 256  # two tables of what the 256 codes mean
    return total


def step_bytes(job: TrainingJob) -> int:
    """What the optimizer holds besides, at most, while it steps: with all parameters, or one in the backward pass."""
    parameters, _ = inventory(job.config)
    optimizer, weight = job.optimizer, job.bytes.weights
    if isinstance(optimizer, MuonAdamW):
        return _muon_step_bytes(job, optimizer)
    if isinstance(optimizer, AdamW8bit) and job.device == "cpu":
        return _step_8bit_bytes(job, optimizer)
    if isinstance(optimizer, AdamW) and not optimizer.fused:
        numbers = [local_numbers(one, job.shards) for one in parameters]
        # The denominators: of all parameters together where operations run over lists of tensors, on a GPU.
        together = job.device == "cuda" and not job.steps_in_backward
        return weight * (sum(numbers) if together else 2 * max(numbers))
    if isinstance(optimizer, SGD) and optimizer.weight_decay and job.device == "cuda":
        return largest_gradient_bytes(job, range(1)) if job.steps_in_backward else gradient_bytes(job)
    return 0


def _step_8bit_bytes(job: TrainingJob, optimizer: AdamW8bit) -> int:
    """On CPU bitsandbytes updates one parameter at a time with PyTorch's operations, in float32: 2 tensors of its size
    where the states have 32 bits, 6 where they are unpacked and packed again. A GPU has kernels for it."""
    most = 0
    for one in inventory(job.config)[0]:
        numbers = local_numbers(one, job.shards)
        wide = one.kind == "embeddings" or numbers < optimizer.min_8bit_size
        most = max(most, 4 * numbers * (2 if wide else 6))
    return most


def _muon_step_bytes(job: TrainingJob, optimizer: MuonAdamW) -> int:
    """Updates of every hidden matrix at once, then those of one shape, whole even where weights are sharded: their
    stack, Newton-Schulz's three of its size and two Gram matrices, and what has been made of it."""
    from lightning_gpt.optim.newton_schulz import product_dtype

    parameters, _ = inventory(job.config)
    hidden = [one for one in parameters if one.kind == "hidden"]
    weight = job.bytes.weights
    product = 2 if job.device == "cuda" or optimizer.precision == "bf16" else 0
    if not product:
        import torch

        product = product_dtype(torch.device("cpu"), optimizer.precision).itemsize
    shapes = Counter(one.shape for one in hidden)
    updates = weight * sum(local_numbers(one, job.shards) for one in hidden) if optimizer.nesterov else 0
    if job.steps_in_backward:  # matrix by matrix
        shapes = dict.fromkeys(shapes, 1)
        updates = weight * max(one.numbers for one in hidden) if optimizer.nesterov else 0
    most = 0
    for shape, count in shapes.items():
        numbers = math.prod(shape)
        together = min(count, max(1, MAX_STACKED_ELEMENTS // numbers))
        rows, columns = sorted(shape[-2:])
        stack = together * numbers
        grams = 2 * stack // columns * rows
        working = weight * stack + product * (3 * stack + grams) + weight * (count - together) * numbers
        gathered = weight * count * numbers if job.shards > 1 else 0
        most = max(most, working + gathered)
    return updates + most


def communication_bytes(job: TrainingJob) -> int:
    """What only several devices need: DDP's buckets, or FSDP2's gathered weights and the gradients on their way.

    FSDP2 gathers a block while the one before it computes, so two are whole at a time, and keeps what is outside the
    blocks (embeddings, head, last norm) whole from the forward pass to the end of the backward pass; a block's whole
    gradients wait for their reduce-scatter (Zhao et al., 2023, section 4).
    """
    parameters, _ = inventory(job.config)
    if job.devices == 1:
        return 0
    if job.strategy == "ddp":
        return 0 if job.bucket_view else gradient_bytes(job)
    blocks = Counter()
    for one in parameters:
        blocks[one.layer] += one.numbers
    outside = blocks.pop(None, 0)
    largest = sorted(blocks.values())[-2:]
    return job.bytes.weights * (outside + sum(largest) + max(largest))
