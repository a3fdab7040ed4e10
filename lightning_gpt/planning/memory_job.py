"""What is trained, how and on what: all that decides how much memory a training run needs."""

import difflib
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.optim import AdamW, OptimizerSpec
from lightning_gpt.optim.groups import parameter_kinds
from lightning_gpt.parallel.recompute import Recompute, RecomputeSetting


class Precision(NamedTuple):
    """Bytes of one number."""

    weights: int
    """Of weights and gradients, and of the residual stream between blocks."""
    compute: int
    """Of what matrix products take and give."""

    @property
    def autocast(self) -> bool:
        """Whether matrix products take copies of the weights in another type."""
        return self.compute != self.weights


PRECISIONS: dict[str, Precision] = {
    "32-true": Precision(4, 4),
    "bf16-mixed": Precision(4, 2),
    "16-mixed": Precision(4, 2),
    "bf16-true": Precision(2, 2),
    "16-true": Precision(2, 2),
}
STRATEGIES = ("single", "ddp", "fsdp")
DEVICES = ("cpu", "cuda")


def choose(name: str, value: str, known: tuple[str, ...] | dict) -> str:
    """`value`, if it is known.

    Raises:
        ValueError: it is not; names the nearest.
    """
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is unknown{hint} (known: {', '.join(known)})")


@dataclass(frozen=True)
class TrainingJob:
    """A training run as `lightning-gpt fit` makes it.

    Legend of this folder's memory files: B windows, T tokens of one, N = B T, C width, L layers, H query heads, K
    key/value heads, D head width, F feed-forward width, V vocabulary.

    Raises:
        ValueError: a figure that cannot be, or an unknown name; says which and the nearest.
    """

    config: GPTConfig
    """vocab_size and block_size are the data's."""
    batch_size: int
    """B, windows of one device and forward pass."""
    block_size: int
    """T."""
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    precision: str = "32-true"
    """As trainer.precision."""
    device: str = "cpu"
    strategy: str = "single"
    """single; ddp: a copy on each device; fsdp: everything sharded over the devices (FSDP2)."""
    devices: int = 1
    accumulate: int = 1
    """Micro-batches of one optimizer step."""
    activation_checkpointing: RecomputeSetting = 0
    """As the tasks' setting: what is computed again in the backward pass."""
    val_batch_size: int | None = None
    """Windows of a validation pass; null = as batch_size, 0 = no validation."""
    val_block_size: int | None = None
    """Tokens of a validation window; null = as block_size."""
    documents: bool = False
    """Whether windows hold documents that do not see each other."""
    prefetch: bool = False
    """Whether batches are made ahead of time."""
    bucket_view: bool = False
    """DDP's gradient_as_bucket_view: gradients live in the buckets that are sent."""
    sample_rows: int = 0
    """Prompts that are continued after each validation."""
    sample_tokens: int = 0
    """New tokens of each."""

    def __post_init__(self) -> None:
        choose("precision", self.precision, PRECISIONS)
        choose("strategy", self.strategy, STRATEGIES)
        choose("device", self.device, DEVICES)
        for name in ("batch_size", "block_size", "devices", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("sample_rows", "sample_tokens", "val_batch_size"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        Recompute.of(self.activation_checkpointing)
        if self.steps_in_backward and (self.accumulate > 1 or self.strategy == "ddp"):
            raise ValueError(
                f"model.optimizer.in_backward=true with {self.accumulate} micro-batches a step and strategy="
                f"{self.strategy}: it takes one micro-batch, on one device or sharded"
            )
        if self.strategy == "single" and self.devices > 1:
            raise ValueError(f"devices={self.devices} with strategy=single: use strategy=ddp or fsdp")
        if self.block_size > self.config.block_size:
            raise ValueError(f"block_size={self.block_size} exceeds the network's {self.config.block_size}")

    @property
    def bytes(self) -> Precision:
        """Of one number, by use."""
        return PRECISIONS[self.precision]

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        if self.bytes.compute == 4:
            return torch.float32
        return torch.bfloat16 if self.precision.startswith("bf16") else torch.float16

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.bytes.weights == 4 else self.dtype

    @property
    def tokens(self) -> int:
        """N of one device and forward pass."""
        return self.batch_size * self.block_size

    @property
    def validation(self) -> tuple[int, int]:
        """Windows and tokens of one, in validation."""
        rows = self.batch_size if self.val_batch_size is None else self.val_batch_size
        return rows, self.val_block_size or self.block_size

    @property
    def steps_in_backward(self) -> bool:
        """Whether parameters are updated one by one in the backward pass."""
        return getattr(self.optimizer, "in_backward", False)

    @property
    def shards(self) -> int:
        """Devices that weights, gradients and optimizer states are spread over."""
        return self.devices if self.strategy == "fsdp" else 1


class Parameter(NamedTuple):
    """One parameter, as the network registers it."""

    name: str
    kind: str
    """Of optim/groups.py."""
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many."""
        return torch.Size(self.shape).numel()

    @property
    def layer(self) -> int | None:
        """Of the block that holds it; None = outside the blocks."""
        first, _, rest = self.name.partition(".")
        return int(rest.partition(".")[0]) if first == "blocks" else None


@cache
def inventory(config: GPTConfig) -> tuple[tuple[Parameter, ...], int]:
    """Every parameter of a network (a tied one once) and the bytes of its tables, from a network without memory."""
    with torch.device("meta"):
        network = GPT(config)
    kinds = parameter_kinds(network)
    found = [Parameter(name, kind, tuple(one.shape)) for kind, named in kinds.items() for name, one in named]
    return tuple(found), sum(buffer.nbytes for buffer in network.buffers())
