"""Devices in nodes, and the ways to spread a training run over them."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from lightning_gpt.nn import GPTConfig
from lightning_gpt.planning.accelerators import Machine
from lightning_gpt.planning.interconnect import LINKS, Group, Link, find_link, share

NODE = 8
"""Devices of a node, unless said otherwise."""
NETWORKS = {"nvlink4": "infiniband-400g", "nvlink5": "infiniband-400g", "nvlink3": "infiniband-200g"}
"""Between nodes, by what joins the devices of one; else ELSE."""
ELSE = "ethernet-25g"
Strategy = Literal["ddp", "fsdp", "hsdp", "tp", "fsdp_tp"]
STRATEGIES: dict[str, str] = {
    "ddp": "DDP",
    "fsdp": "FSDP",
    "hsdp": "HSDP",
    "tp": "TP",
    "fsdp_tp": "FSDP + TP",
}
"""Name -> heading, the simplest first."""


@dataclass(frozen=True)
class Cluster:
    """Devices, in nodes, with their links.

    Raises:
        ValueError: nodes of unequal size.
    """

    machine: Machine
    per_node: int
    """Devices of one node."""
    within: Link
    """Joins the devices of a node."""
    between: Link
    """One network card of a node."""
    cards: int
    """Network cards of a node."""

    def __post_init__(self) -> None:
        for name in ("per_node", "cards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.devices % self.per_node:
            raise ValueError(
                f"gpus: {self.devices} devices do not fill nodes of {self.per_node}: use a multiple, or say --per_node"
            )

    @property
    def devices(self) -> int:
        """All."""
        return self.machine.devices

    @property
    def nodes(self) -> int:
        """All."""
        return self.devices // self.per_node

    def group(self, devices: int, stride: int = 1) -> Group:
        """Every `stride`-th device, `devices` of them: stride 1 = neighbours, which fill nodes one after the other.

        While such a group talks, so do the groups of the devices between, and they share the node's cards.
        """
        local = min(devices, max(1, self.per_node // stride))
        nodes = -(-devices // local)
        # Devices of a node that send to the network at the same time: all, whether in one group or in several.
        card = share(self.between, self.cards, self.per_node)
        return Group(local, nodes, self.within, card, rings=self.within.name != "loopback")


def make_cluster(
    machine: Machine, interconnect: str | None = None, per_node: int | None = None, cards: int | None = None
) -> Cluster:
    """The machine with its links.

    Args:
        machine: devices of one kind.
        interconnect: names of a link within nodes, of one between them, or both with a plus: nvlink, pcie, pcie4,
            infiniband-200g, pcie+ethernet-25g; None = what is usual for the device.
        per_node: devices of a node; None = 8, or all where there are fewer.
        cards: network cards of a node; None = as many as devices for InfiniBand, else one.

    Raises:
        ValueError: an unknown link, one that the device does not have, one that has no use.
    """
    accelerator = machine.accelerator
    if not accelerator.link:
        raise ValueError(f"gpus: no strategy here runs on {accelerator.name}: name GPUs, or cpu")
    if per_node is None:
        per_node = min(NODE, machine.devices)
    within, between = LINKS[accelerator.link], None
    for name in (interconnect or "").split("+") if interconnect else ():
        link = _generic(name, accelerator.link, accelerator.name) or find_link(name)
        if link.kind == "device":
            within = link
        else:
            between = link
    if between is not None and machine.devices <= per_node:
        raise ValueError(
            f"interconnect={between.name} joins nodes, and {machine.devices} devices are one node of {per_node}: "
            "name more devices, or fewer of a node with --per_node"
        )
    between = between or LINKS[NETWORKS.get(accelerator.link, ELSE)]
    if cards is None:
        cards = per_node if between.name.startswith("infiniband") else 1
    return Cluster(machine, per_node, within, between, cards)


def _generic(name: str, own: str, accelerator: str) -> Link | None:
    """nvlink and pcie without a generation."""
    key = name.strip().lower()
    if key == "nvlink":
        if not own.startswith("nvlink"):
            raise ValueError(f"interconnect=nvlink: {accelerator} has none, use {own}")
        return LINKS[own]
    if key == "pcie":
        generation = {"nvlink2": "pcie3", "nvlink4": "pcie5", "nvlink5": "pcie5", "infinity-fabric": "pcie5"}
        return LINKS[own if own.startswith("pcie") else generation.get(own, "pcie4")]
    return LINKS["infiniband-200g"] if key == "infiniband" else None


@dataclass(frozen=True)
class Layout:
    """How devices share the work: shard x tensor x replicas of them.

    Devices of a tensor-parallel group are neighbours, then those of a sharding group, then replicas, as
    torch.distributed's meshes (replicate, shard, tensor) lie.
    """

    strategy: Strategy
    replicas: int
    """Groups that each hold all of the states."""
    shard: int
    """Devices that weights, gradients and optimizer states are cut over."""
    tensor: int
    """Devices that cut each matrix product (Shoeybi et al., 2019)."""
    micro_batch: int
    """Windows of one forward pass; the devices of a tensor-parallel group work on the same."""
    accumulate: int
    """Forward passes of an optimizer step."""
    checkpoint_every: int = 0
    """Activation checkpointing: 0 = off; n = every n-th block is computed again in the backward pass."""
    sync_every: bool = False
    """FSDP under accumulation: scatter gradients after every micro-batch, or hold whole ones until the last."""

    @property
    def data(self) -> int:
        """Batches at a time."""
        return self.replicas * self.shard

    @property
    def devices(self) -> int:
        """All."""
        return self.data * self.tensor

    @property
    def title(self) -> str:
        """Such as FSDP 8 x TP 4."""
        if self.strategy == "fsdp_tp":
            return f"FSDP {self.data} x TP {self.tensor}"
        if self.strategy == "hsdp":
            return f"HSDP {self.replicas} x {self.shard}"
        return STRATEGIES[self.strategy]


def layouts(cluster: Cluster, config: GPTConfig, windows: int) -> list[Layout]:
    """Every way to lay a global batch out, with one window a forward pass: micro_batch and accumulate are to choose.

    Tensor parallelism stays within a node, and takes degrees that divide heads, key/value heads and feed-forward.

    Args:
        cluster: see Cluster.
        config: the network.
        windows: of the global batch.

    Raises:
        ValueError: the windows do not divide over the devices.
    """
    devices, found = cluster.devices, []
    if windows % devices and windows < devices:
        raise ValueError(
            f"global_batch_tokens: {windows} windows are fewer than {devices} devices: use at least one for each"
        )
    check_windows(windows, devices)

    def layout(strategy: Strategy, replicas: int, shard: int, tensor: int) -> Layout:
        return Layout(strategy, replicas, shard, tensor, 1, windows // (replicas * shard))

    found.append(layout("ddp", devices, 1, 1))
    if devices == 1:
        return found
    found.append(layout("fsdp", 1, devices, 1))
    if cluster.nodes > 1 and cluster.per_node > 1:
        found.append(layout("hsdp", cluster.nodes, cluster.per_node, 1))
    for tensor in tensor_sizes(cluster, config):
        if tensor == devices:
            found.append(layout("tp", 1, 1, tensor))
        else:
            found.append(layout("fsdp_tp", 1, devices // tensor, tensor))
    return found


def check_windows(windows: int, devices: int) -> None:
    """Whether each device gets as many windows.

    Raises:
        ValueError: it does not; names the nearest numbers.
    """
    if windows % devices:
        low = windows // devices * devices
        raise ValueError(
            f"global_batch_tokens: {windows} windows do not divide over {devices} devices: use {low} or "
            f"{low + devices} windows"
        )


def tensor_sizes(cluster: Cluster, config: GPTConfig) -> list[int]:
    """Degrees of tensor parallelism that divide the network and a node, ascending."""
    found = []
    for size in range(2, cluster.per_node + 1):
        if cluster.per_node % size == 0 and tensor_problem(config, size) is None:
            found.append(size)
    return found


def tensor_problem(config: GPTConfig, size: int) -> str | None:
    """Why a network cannot be cut into so many; None: it can."""
    if config.moe is not None:
        return "experts are not cut by tensor parallelism"
    for name, number in (
        ("heads", config.n_head),
        ("key/value heads", config.kv_heads),
        ("feed-forward", config.hidden_size),
    ):
        if number % size:
            return f"{number} {name} do not divide by {size}"
    return None


def check_tensor(config: GPTConfig, cluster: Cluster, size: int) -> None:
    """Whether a degree of tensor parallelism that was asked for can be.

    Raises:
        ValueError: it cannot; says why and which can.
    """
    known = [1, *tensor_sizes(cluster, config)]
    problem = tensor_problem(config, size) if size > 1 else None
    if size not in known:
        problem = problem or f"it does not divide a node of {cluster.per_node} devices"
        raise ValueError(f"tensor={size}: {problem} (use {', '.join(map(str, known))})")


def with_batch(layout: Layout, micro_batch: int, checkpoint_every: int, sync_every: bool = False) -> Layout:
    """The same layout with another cut of its windows into forward passes."""
    windows = layout.micro_batch * layout.accumulate
    assert windows % micro_batch == 0
    cut = {"micro_batch": micro_batch, "accumulate": windows // micro_batch}
    return replace(layout, **cut, checkpoint_every=checkpoint_every, sync_every=sync_every)


def divisors(number: int) -> list[int]:
    """Ascending."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})
