"""Activation checkpointing within a budget: which blocks are computed again, wholly or in part, so that what all of
them keep fits, at the least arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lightning_gpt.parallel.selective import SAVED

STEPS = ("none", "selective", "full")
"""From what keeps most to what keeps least."""


class BlockCost(NamedTuple):
    """Of one block, by the names in STEPS."""

    kept: Mapping[str, float]
    """Bytes from the forward to the backward pass."""
    flops: Mapping[str, float]
    """That are spent again in the backward pass."""


def choose_modes(costs: Sequence[BlockCost], budget: float | int) -> list[str]:
    """For every block one of STEPS.

    What saves most bytes for a FLOP comes first; among equals the first blocks, which are computed again when what
    the others kept is freed already.

    Args:
        costs: of the blocks in order.
        budget: bytes (int) that all blocks together may keep, or a share (float) of what they keep at "none". One
            block that is being computed again comes on top.

    Returns:
        What fits, or where nothing does, what keeps least.
    """
    limit = budget if isinstance(budget, int) else budget * sum(one.kept["none"] for one in costs)
    changes = []
    for layer, cost in enumerate(costs):
        now = "none"
        for later in _worthwhile(cost):
            saved = cost.kept[now] - cost.kept[later]
            changes.append(((cost.flops[later] - cost.flops[now]) / saved, layer, later, saved))
            now = later
    modes, total = ["none"] * len(costs), sum(one.kept["none"] for one in costs)
    for _, layer, mode, saved in sorted(changes):
        if total <= limit:
            break
        modes[layer], total = mode, total - saved
    return modes


def _worthwhile(cost: BlockCost) -> list[str]:
    """The steps after "none" that each save something, at a rising price."""

    def price(a: str, b: str) -> float:
        return (cost.flops[b] - cost.flops[a]) / (cost.kept[a] - cost.kept[b])

    none, some, all_ = (cost.kept[step] for step in STEPS)
    if not none > some:
        return ["full"] if none > all_ else []
    if not some > all_:
        return ["selective"]
    return ["selective", "full"] if price("none", "selective") <= price("selective", "full") else ["full"]


class BudgetedBlocks:
    """Runs the blocks of a network by modes that it chooses in the first training step, and again when a larger batch
    comes: every block is tried once in each way, on its own input, and what autograd keeps is counted.

    Args:
        layers: how many blocks.
        budget: as choose_modes.
        forwards: mode -> (forward, *args) -> result.
    """

    def __init__(self, layers: int, budget: float | int, forwards: Mapping[str, Callable[..., Any]]) -> None:
        self.layers, self.budget, self.forwards = layers, budget, forwards
        self.modes: list[str] = []
        """Chosen; empty before."""
        self.costs: list[BlockCost] = []
        self._numbers = 0

    def run(self, layer: int, block: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
        """One block's forward pass."""
        if layer == 0 and args[0].numel() > self._numbers:
            self.modes, self.costs, self._numbers = [], [], args[0].numel()
        if self.modes:
            return self.forwards[self.modes[layer]](forward, *args)
        self.costs.append(self._tried(block, forward, *args))
        if len(self.costs) == self.layers:
            self.modes = choose_modes(self.costs, self.budget)
            self._warn()
        return self.forwards["full"](forward, *args)

    def _warn(self) -> None:
        least = sum(cost.kept[mode] for mode, cost in zip(self.modes, self.costs))
        if isinstance(self.budget, int) and least > self.budget:
            rank_zero_warn(
                f"activation_checkpointing={self.budget / 2**20:.1f}MiB cannot be kept: with every block computed "
                f"again they keep {least / 2**20:.1f} MiB; take smaller micro-batches (data.batch_size)"
            )

    def _tried(self, block: nn.Module, forward: Callable[..., Any], *args: Any) -> BlockCost:
        own = {_address(one) for one in (*block.parameters(), *block.buffers())}
        own |= {_address(one) for one in _tensors(args[1:])} - {_address(args[0])}
        kept, flops = {}, dict.fromkeys(STEPS, 0.0)
        devices = [args[0].device] if args[0].device.type == "cuda" else []
        for mode in STEPS:
            with torch.random.fork_rng(devices):
                kept[mode] = _kept_bytes(self.forwards[mode], own, forward, *args)
        with torch.random.fork_rng(devices), torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(*args)
        counts = counter.get_flop_counts()["Global"]
        flops["full"] = float(sum(counts.values()))
        flops["selective"] = float(sum(count for op, count in counts.items() if not _saved(op)))
        return BlockCost(kept, flops)


def _saved(op: Any) -> bool:
    return any(getattr(op, name) in SAVED for name in op.overloads())


def _address(tensor: Tensor) -> int:
    return getattr(tensor, "_local_tensor", tensor).untyped_storage().data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [one for part in value.values() for one in _tensors(part)]
    if isinstance(value, tuple | list):
        return [one for part in value for one in _tensors(part)]
    return _tensors(vars(value)) if hasattr(value, "__dataclass_fields__") else []


def _kept_bytes(run: Callable[..., Any], own: set[int], forward: Callable[..., Any], *args: Any) -> int:
    """Of all storages that a forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> None:
        # Nothing is given back: there is no backward pass, and a graph that held its own results would live for ever.
        address = _address(tensor)
        if address not in own:
            storages[address] = getattr(tensor, "_local_tensor", tensor).untyped_storage()  # keeps its address, too

    with saved_tensors_hooks(pack, lambda nothing: nothing):
        result = run(forward, *args)
    del result
    return sum(storage.nbytes() for storage in storages.values())
