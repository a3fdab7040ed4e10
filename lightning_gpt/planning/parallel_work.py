"""What one optimizer step asks of a device: seconds of computing block by block, bytes of parameters, the update."""

from dataclasses import dataclass
from functools import cached_property

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import (
    attention_matrix_parameters,
    average_keys,
    feed_forward_matrix_parameters,
    training_flops_per_token,
)
from lightning_gpt.optim import MuonAdamW
from lightning_gpt.planning.memory_job import TrainingJob, inventory
from lightning_gpt.planning.memory_states import state_bytes
from lightning_gpt.planning.parallel_layout import Cluster, Layout
from lightning_gpt.planning.parallel_memory import job_of

NEWTON_SCHULZ = 5
"""Steps of Muon's iteration (Jordan et al., 2024)."""


def block_flops(config: GPTConfig, layer: int, context: int) -> float:
    """Of the forward pass of one block, a token."""
    keys = average_keys(config.windows[layer], context, causal=False)
    matrices = attention_matrix_parameters(config) + feed_forward_matrix_parameters(config, layer, active=True)
    return 2.0 * (matrices + 2 * config.n_head * config.head_size * keys)


def head_flops(config: GPTConfig) -> float:
    """Of the forward pass of the output head, a token."""
    return 2.0 * config.n_embd * config.padded_vocab_size


@dataclass(frozen=True)
class Work:
    """One device's share of a step."""

    base: TrainingJob
    """Network, window, optimizer and precision, before anything is cut."""
    layout: Layout
    cluster: Cluster

    @property
    def tokens(self) -> int:
        """Of one forward pass of one device, or of the devices of one tensor-parallel group."""
        return self.layout.micro_batch * self.base.block_size

    @property
    def step_tokens(self) -> int:
        """Of an optimizer step, all devices."""
        return self.tokens * self.layout.accumulate * self.layout.data

    @property
    def flops_per_second(self) -> float:
        """Of one device, as used."""
        return self.cluster.machine.flops_per_second / self.cluster.devices

    @property
    def memory_bandwidth(self) -> float:
        """Bytes a second of a device's memory; all of the table's are known."""
        return self.cluster.machine.accelerator.bandwidth

    def _seconds(self, flops: float) -> float:
        return flops * self.tokens / self.layout.tensor / self.flops_per_second

    @cached_property
    def head(self) -> float:
        """Seconds of the output head's forward pass."""
        return self._seconds(head_flops(self.base.config))

    @cached_property
    def blocks(self) -> tuple[float, ...]:
        """Seconds of each block's forward pass, without communication."""
        config, context = self.base.config, self.base.block_size
        return tuple(self._seconds(block_flops(config, layer, context)) for layer in range(config.n_layer))

    def recomputed(self, layer: int) -> bool:
        """Whether a block's forward pass is run again in the backward pass."""
        every = self.layout.checkpoint_every
        return bool(every) and layer % every == 0

    def backward(self, layer: int) -> float:
        """Seconds of a block's backward pass: two products for each of the forward's, which may come again."""
        return self.blocks[layer] * (3 if self.recomputed(layer) else 2)

    @cached_property
    def compute(self) -> float:
        """Seconds of all forward and backward passes of a step."""
        layers = range(len(self.blocks))
        once = 3 * self.head + sum(self.blocks) + sum(map(self.backward, layers))
        return once * self.layout.accumulate

    @property
    def model_flops(self) -> float:
        """Analytic FLOPs of a step, all devices; recomputation is none of them."""
        return training_flops_per_token(self.base.config, self.base.block_size) * self.step_tokens

    @cached_property
    def job(self) -> TrainingJob:
        """The run of one device."""
        return job_of(self.base, self.layout)

    @cached_property
    def numbers(self) -> dict[int | None, int]:
        """Parameters of each block, None = outside the blocks, that a sharding group holds together."""
        found: dict[int | None, int] = dict.fromkeys((None, *range(self.base.config.n_layer)), 0)
        for one in inventory(self.job.config)[0]:
            found[one.layer] += one.numbers
        return found

    @property
    def number_bytes(self) -> int:
        """Of a weight, and of a gradient on its way."""
        return self.base.bytes.weights

    @cached_property
    def muon_numbers(self) -> int:
        """Parameters that Muon updates as whole matrices; 0 with other optimizers."""
        if not isinstance(self.base.optimizer, MuonAdamW):
            return 0
        return sum(one.numbers for one in inventory(self.job.config)[0] if one.kind == "hidden")

    @cached_property
    def optimizer(self) -> float:
        """Seconds of the update: memory is read and written, and Muon multiplies matrices.

        Of each number the gradient is read for its norm, scaled, and read again; weight and states are read and
        written. Muon's products of whole matrices are shared out among the devices that the weights are cut over.
        """
        spec, size, shards = self.base.optimizer, self.number_bytes, self.layout.shard
        moved = flops = 0.0
        for one in inventory(self.job.config)[0]:
            numbers = one.numbers / shards
            states = state_bytes(spec, one, one.numbers, size) / shards
            moved += (2 + 4) * size * numbers + 2 * states
            if isinstance(spec, MuonAdamW) and one.kind == "hidden":
                rows, columns = sorted(one.shape[-2:])
                stacked = one.numbers // (rows * columns)
                flops += NEWTON_SCHULZ * stacked * (4 * rows**2 * columns + 2 * rows**3)
        return moved / self.memory_bandwidth + flops / shards / self.flops_per_second
