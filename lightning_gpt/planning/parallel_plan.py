"""From a network, a global batch and a machine to proposals: which strategy, cut how, how full, how quick."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_overhead import MemoryPlan
from lightning_gpt.planning.parallel_layout import (
    STRATEGIES,
    Cluster,
    Layout,
    check_windows,
    divisors,
    layouts,
    with_batch,
)
from lightning_gpt.planning.parallel_memory import memory_of
from lightning_gpt.planning.parallel_step import StepTime, predict
from lightning_gpt.planning.parallel_work import Work

ROUNDING = 0.01
"""By which share a global batch may be moved to a multiple of what the devices take at a time."""
CLOSE = 0.02
"""Proposals whose speed differs by less are equal: then the simpler one comes first."""


@dataclass(frozen=True)
class Proposal:
    """One strategy with its best micro-batch."""

    layout: Layout
    memory: MemoryPlan
    budget: float
    """Bytes of one device."""
    step: StepTime
    tokens: int
    """Of a step, all devices."""
    flops: float
    """Analytic, of a step, all devices."""
    peak_flops: float
    """FLOP/s of all devices."""

    @property
    def fits(self) -> bool:
        """Into the memory of a device."""
        return self.memory.total <= self.budget

    @property
    def tokens_per_second(self) -> float:
        """All devices."""
        return self.tokens / self.step.total

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation (Chowdhery et al., 2022, appendix B)."""
        return self.flops / self.step.total / self.peak_flops

    @property
    def problem(self) -> str:
        """Why it does not fit, naming what is largest; empty: it does."""
        if self.fits:
            return ""
        parts = sorted(self.memory.parts().items(), key=lambda item: -item[1])[:3]
        largest = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in parts)
        return f"needs {self.memory.total / 1e9:.4g} of {self.budget / 1e9:.4g} GB ({largest})"


def global_windows(tokens: float, context: int, devices: int) -> int:
    """Windows of a global batch that divide over all devices.

    Args:
        tokens: asked for; moved to the nearest multiple where that is within ROUNDING.
        context: tokens of a window.
        devices: all.

    Raises:
        ValueError: no multiple is near; names the nearest.
    """
    unit = context * devices
    nearest = max(1, round(tokens / unit))
    if abs(nearest * unit / tokens - 1) <= ROUNDING:
        return nearest * devices
    if tokens < unit:
        raise ValueError(
            f"global_batch_tokens={tokens:g} is less than one window of {context:,} tokens for each of {devices} "
            f"devices: use at least {unit:,}"
        )
    low = int(tokens // unit) * unit
    raise ValueError(
        f"global_batch_tokens={tokens:g} does not divide into windows of {context:,} tokens over {devices} devices: "
        f"use {low:,} or {low + unit:,}"
    )


def default_global_tokens(parameters: int) -> int:
    """The batch that GPT-3's table 2.1 gives to networks of such a size, as powers of two: half a million tokens below
    1e9 parameters, a million below 5e9, two above (Brown et al., 2020)."""
    return 1 << (19 if parameters < 1e9 else 20 if parameters < 5e9 else 21)


def cuts(layout: Layout, micro_batch: int | None, checkpoint_every: int | None) -> Iterator[Layout]:
    """The same layout with every micro-batch and checkpointing that is allowed."""
    windows = layout.micro_batch * layout.accumulate
    if micro_batch is None:
        rows = [one for one in divisors(windows) if one <= 512]
    else:
        rows = [micro_batch] if windows % micro_batch == 0 else []
    for every in (0, 1) if checkpoint_every is None else (checkpoint_every,):
        for row in rows:
            yield with_batch(layout, row, every)
            if layout.shard > 1 and row < windows:
                yield with_batch(layout, row, every, sync_every=True)


def propose(
    base: TrainingJob,
    cluster: Cluster,
    windows: int,
    budget: float | None = None,
    micro_batch: int | None = None,
    checkpoint_every: int | None = None,
    tensor: int | None = None,
) -> list[Proposal]:
    """Every strategy with its quickest cut that fits, or with the smallest if none does; the best first, then the
    others that fit by speed, then those that do not.

    Args:
        base: network, window, optimizer and precision; its batch is replaced.
        cluster: devices.
        windows: of the global batch.
        budget: bytes of one device; None = as the table of accelerators says.
        micro_batch: windows of one forward pass; None = the quickest.
        checkpoint_every: activation checkpointing; None = with or without, the quicker.
        tensor: degree of tensor parallelism; None = all.

    Raises:
        ValueError: windows that do not divide, no memory known.
    """
    budget = budget or cluster.machine.accelerator.memory
    if not budget:
        raise ValueError(f"the memory of {cluster.machine.accelerator.name} is unknown: give --memory, such as 16GiB")
    check_windows(windows, cluster.devices)
    base = replace(base, sample_rows=0, sample_tokens=0)
    found = []
    for layout in layouts(cluster, base.config, windows):
        if tensor is not None and layout.tensor != tensor:
            continue
        tried = [_proposal(base, one, cluster, budget) for one in cuts(layout, micro_batch, checkpoint_every)]
        fitting = [one for one in tried if one.fits]
        if fitting:
            most = max(one.tokens_per_second for one in fitting)
            # Larger micro-batches keep a device busier than is counted here: of the equal ones the largest.
            near = [one for one in fitting if one.tokens_per_second >= (1 - CLOSE) * most]
            found.append(max(near, key=lambda one: (-one.layout.checkpoint_every, one.layout.micro_batch)))
        elif tried:
            found.append(min(tried, key=lambda one: one.memory.total))
    if not found:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide the {windows // cluster.devices} windows of each device: use "
            f"one of {', '.join(map(str, divisors(windows // cluster.devices)))}"
        )
    return _ordered(found)


def _proposal(base: TrainingJob, layout: Layout, cluster: Cluster, budget: float) -> Proposal:
    work = Work(base, layout, cluster)
    peak = cluster.devices * cluster.machine.accelerator.peak_flops
    step = predict(base, layout, cluster)
    return Proposal(layout, memory_of(base, layout), budget, step, work.step_tokens, work.model_flops, peak)


def _ordered(found: list[Proposal]) -> list[Proposal]:
    """The recommended one first."""
    simple = list(STRATEGIES)
    fitting = sorted((one for one in found if one.fits), key=lambda one: -one.tokens_per_second)
    if fitting:
        near = [one for one in fitting if one.tokens_per_second >= (1 - CLOSE) * fitting[0].tokens_per_second]
        best = min(near, key=lambda one: simple.index(one.layout.strategy))
        fitting.remove(best)
        fitting.insert(0, best)
    return fitting + sorted((one for one in found if not one.fits), key=lambda one: one.memory.total)


@dataclass(frozen=True)
class Point:
    """One number of devices on a scaling curve."""

    devices: int
    step: StepTime
    tokens_per_second: float
    efficiency: float
    """Weak: as StepTime's. Strong: speed over devices times the speed of the fewest."""


def scaled(cluster: Cluster, devices: int) -> Cluster:
    """The same links with more or fewer devices; fewer than a node's share one node."""
    machine = replace(cluster.machine, devices=devices)
    return replace(cluster, machine=machine, per_node=min(cluster.per_node, devices))


def respread(layout: Layout, cluster: Cluster) -> Layout | None:
    """A strategy on other devices, its micro-batch and accumulation kept; None: it cannot be."""
    devices = cluster.devices
    if layout.strategy == "ddp" or devices == 1:
        return replace(layout, strategy="ddp", replicas=devices, shard=1, tensor=1) if layout.tensor == 1 else None
    if layout.strategy == "fsdp":
        return replace(layout, shard=devices)
    if layout.strategy == "hsdp":
        return replace(layout, replicas=cluster.nodes, shard=cluster.per_node)
    if layout.strategy == "tp":
        return layout if devices == layout.tensor else None
    whole = devices % layout.tensor == 0 and devices > layout.tensor
    return replace(layout, shard=devices // layout.tensor) if whole else None


def weak_scaling(base: TrainingJob, layout: Layout, cluster: Cluster, counts: list[int]) -> list[Point]:
    """Each device keeps its work while their number grows (Gustafson, 1988).

    Args:
        base, layout, cluster: of one proposal.
        counts: numbers of devices; those that the layout cannot be spread over are left out.
    """
    found = []
    for count in counts:
        other = scaled(cluster, count)
        spread = respread(layout, other)
        if spread is not None:
            step = predict(base, spread, other)
            tokens = Work(base, spread, other).step_tokens
            found.append(Point(count, step, tokens / step.total, step.efficiency))
    return found


def strong_scaling(base: TrainingJob, layout: Layout, cluster: Cluster, counts: list[int]) -> list[Point]:
    """The global batch stays while the number of devices grows (Amdahl, 1967): accumulation goes first, then windows.

    Args:
        base, layout, cluster: of one proposal.
        counts: numbers of devices, ascending; those that the batch does not divide over are left out.
    """
    windows = layout.micro_batch * layout.accumulate * layout.data
    found: list[Point] = []
    for count in counts:
        other = scaled(cluster, count)
        spread = respread(layout, other)
        if spread is None or windows % spread.data:
            continue
        each = windows // spread.data
        rows = max(one for one in divisors(each) if one <= layout.micro_batch)
        spread = replace(spread, micro_batch=rows, accumulate=each // rows)
        step = predict(base, spread, other)
        speed = windows * base.block_size / step.total
        first = found[0] if found else None
        share = speed * first.devices / (count * first.tokens_per_second) if first else step.efficiency
        found.append(Point(count, step, speed, share * (first.efficiency if first else 1.0)))
    return found
