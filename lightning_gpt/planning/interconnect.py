"""Links between devices, and what collectives take on them: the alpha-beta model (Hockney, 1994).

A message of n bytes takes alpha + n / bandwidth seconds. For p devices, with n the bytes of the whole (of an all-gather
what each ends with, of a reduce-scatter what each begins with):

    all-gather, reduce-scatter, ring          (p - 1) alpha + (p - 1)/p n / bandwidth       Thakur et al., 2005, 4.1
    the same, recursive doubling and halving  lg p alpha + (p - 1)/p n / bandwidth          p a power of two; 4.1, 4.2
    all-reduce, ring                          2 (p - 1) alpha + 2 (p - 1)/p n / bandwidth   Patarasuk and Yuan, 2009
    all-reduce, halving and doubling          2 lg p alpha + 2 (p - 1)/p n / bandwidth      Thakur et al., 2005, 4.5
    all-reduce, double binary tree            2 ceil(lg p) alpha + 2 n / bandwidth          Sanders et al., 2009

Adding two numbers is free here: devices add faster than links bring. No all-reduce moves fewer bytes than the ring
(Patarasuk and Yuan, theorem 1); the others need fewer messages.
"""

import difflib
import math
from dataclasses import dataclass, replace
from typing import Literal

G = 1e9
US = 1e-6


@dataclass(frozen=True)
class Link:
    """What joins two devices, one direction."""

    name: str
    title: str
    peak: float
    """Bytes a second that the maker states, one direction."""
    reached: float
    """Share of it that large collectives reach ("bus bandwidth" of nccl-tests over the peak)."""
    latency: float
    """alpha: seconds of one message, however short."""
    kind: Literal["device", "network"]
    """Joins the devices of one node, or nodes."""
    interference: float = 0.15
    """Share of a device's computing that is lost while a collective runs beside it: NCCL's channels take some 16 to 24
    of a GPU's 108 to 132 multiprocessors."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second as reached."""
        return self.peak * self.reached


_ALL = (
    # Bus bandwidths that owners publish for all_reduce_perf: 8 x A100 SXM 230 to 235 GB/s (nccl-tests issues 149, 175),
    # 8 x H100 SXM about 360 without in-switch sums; over PCIe 4 with the processors' sockets between them
    # 10 to 13 GB/s where there is no switch, 20 beneath one (nccl-tests 178, nccl 841). Four cards of 200 Gb/s bring
    # 85 of 100 GB/s (nccl-tests 119, 175). InfinityFabric, NVLink 2 and 5 and Ethernet are carried over from these.
    Link("nvlink2", "NVLink 2 (V100)", 150 * G, 0.80, 3 * US, "device"),
    Link("nvlink3", "NVLink 3 (A100)", 300 * G, 0.78, 3 * US, "device"),
    Link("nvlink4", "NVLink 4 (H100, H200)", 450 * G, 0.80, 3 * US, "device"),
    Link("nvlink5", "NVLink 5 (B200)", 900 * G, 0.80, 3 * US, "device"),
    Link("infinity-fabric", "Infinity Fabric (MI300X)", 448 * G, 0.70, 4 * US, "device"),
    Link("pcie3", "PCIe 3 x16", 15.8 * G, 0.40, 8 * US, "device"),
    Link("pcie4", "PCIe 4 x16", 31.5 * G, 0.40, 8 * US, "device"),
    Link("pcie5", "PCIe 5 x16", 63.0 * G, 0.40, 8 * US, "device"),
    Link("infiniband-100g", "InfiniBand EDR", 12.5 * G, 0.87, 6 * US, "network"),
    Link("infiniband-200g", "InfiniBand HDR", 25.0 * G, 0.87, 6 * US, "network"),
    Link("infiniband-400g", "InfiniBand NDR", 50.0 * G, 0.87, 6 * US, "network"),
    Link("infiniband-800g", "InfiniBand XDR", 100 * G, 0.87, 6 * US, "network"),
    Link("ethernet-1g", "Ethernet 1 Gb/s", 0.125 * G, 0.90, 40 * US, "network"),
    Link("ethernet-10g", "Ethernet 10 Gb/s", 1.25 * G, 0.85, 40 * US, "network"),
    Link("ethernet-25g", "Ethernet 25 Gb/s", 3.125 * G, 0.80, 40 * US, "network"),
    Link("ethernet-100g", "Ethernet 100 Gb/s (RoCE)", 12.5 * G, 0.80, 10 * US, "network"),
    Link("ethernet-400g", "Ethernet 400 Gb/s (RoCE)", 50.0 * G, 0.80, 10 * US, "network"),
    # Two processes of one machine through gloo: benchmarks/parallel_plan.py measures it where it runs. The processors
    # that compute also copy and add, so nothing hides.
    Link("loopback", "gloo over loopback", 1.0 * G, 1.0, 150 * US, "device", interference=1.0),
)
LINKS = {one.name: one for one in _ALL}
"""Name -> link. To add one, add a line."""


def find_link(name: str) -> Link:
    """A link by its name.

    Raises:
        ValueError: unknown; names the nearest.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key in LINKS:
        return LINKS[key]
    near = difflib.get_close_matches(key, LINKS, n=2, cutoff=0.4)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"interconnect={name!r} is unknown{hint} (known: nvlink, pcie, {', '.join(LINKS)})")


def messages(bytes: float, link: Link, steps: int, moved: float) -> float:
    """Seconds of so many messages, one after the other, that move `moved` times the bytes together."""
    return steps * link.latency + moved * bytes / link.bandwidth


def power_of_two(devices: int) -> bool:
    """Whether halving and doubling come out even."""
    return devices & (devices - 1) == 0


def ring_gather(bytes: float, devices: int, link: Link) -> float:
    """Seconds of an all-gather or a reduce-scatter around a ring."""
    return messages(bytes, link, devices - 1, (devices - 1) / devices)


def doubling_gather(bytes: float, devices: int, link: Link) -> float:
    """Seconds of an all-gather by recursive doubling, or a reduce-scatter by recursive halving."""
    assert power_of_two(devices)
    return messages(bytes, link, devices.bit_length() - 1, (devices - 1) / devices)


def ring_all_reduce(bytes: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce around a ring: a reduce-scatter and an all-gather."""
    return 2 * ring_gather(bytes, devices, link)


def tree_all_reduce(bytes: float, devices: int, link: Link) -> float:
    """Seconds of an all-reduce up and down two binary trees that use a link in both directions, in many small parts."""
    return messages(bytes, link, 2 * math.ceil(math.log2(devices)), 2) if devices > 1 else 0.0


@dataclass(frozen=True)
class Group:
    """Devices that take part in a collective: `nodes` times `local`, with a link within a node and one between."""

    local: int
    """Devices of each node."""
    nodes: int
    within: Link
    between: Link
    """bandwidth is one device's share of its node's network cards while all of its node talk."""
    rings: bool = False
    """Whether all-gather and reduce-scatter know only rings (NCCL), or also recursive doubling (gloo, MPI)."""

    @property
    def devices(self) -> int:
        """All."""
        return self.local * self.nodes

    def all_gather(self, bytes: float) -> float:
        """Seconds until each device has `bytes`, of which it brought 1/devices. A reduce-scatter takes the same."""
        if self.nodes == 1:
            return self._gather(bytes, self.local, self.within)
        if self.local == 1:
            return self._gather(bytes, self.nodes, self.between)
        # Between nodes each device gathers its own share, then those of a node exchange what they have got.
        staged = self._gather(bytes / self.local, self.nodes, self.between) + self._gather(
            bytes, self.local, self.within
        )
        return min(staged, self._flat(bytes, 1))

    reduce_scatter = all_gather

    def all_reduce(self, bytes: float) -> float:
        """Seconds until each device has the sum of what all brought, `bytes` each: the best of ring, tree, and rings
        within nodes around one between them."""
        if self.nodes == 1:
            return self._reduce(bytes, self.local, self.within)
        if self.local == 1:
            return self._reduce(bytes, self.nodes, self.between)
        staged = 2 * self._gather(bytes, self.local, self.within) + self._reduce(
            bytes / self.local, self.nodes, self.between
        )
        return min(staged, self._flat(bytes, 2), self._chains(bytes))

    def _chains(self, bytes: float) -> float:
        """NCCL's tree across nodes: a chain through each node, a double binary tree over the nodes, in small parts."""
        slowest = min(self.within.bandwidth, self.local * self.between.bandwidth)
        hops = math.ceil(math.log2(self.nodes)) * self.between.latency + (self.local - 1) * self.within.latency
        return 2 * (hops + bytes / slowest)

    def _flat(self, bytes: float, rounds: int) -> float:
        """One ring through all devices, in as many channels as there are devices in a node, each of which leaves the
        node at another one: the network carries what all of a node's shares carry together."""
        p = self.devices
        slowest = min(self.within.bandwidth, self.local * self.between.bandwidth)
        hops = self.nodes * self.between.latency + (p - 1 - self.nodes) * self.within.latency
        return rounds * (hops + (p - 1) / p * bytes / slowest)

    def _gather(self, bytes: float, devices: int, link: Link) -> float:
        if self.rings or not power_of_two(devices):
            return ring_gather(bytes, devices, link)
        return doubling_gather(bytes, devices, link)

    def _reduce(self, bytes: float, devices: int, link: Link) -> float:
        found = [ring_all_reduce(bytes, devices, link), tree_all_reduce(bytes, devices, link)]
        if not self.rings and power_of_two(devices):
            found.append(2 * doubling_gather(bytes, devices, link))
        return min(found)


def share(link: Link, cards: int, devices: int) -> Link:
    """One device's part of a node's network cards while all of its devices talk.

    Args:
        link: of one card.
        cards: of a node.
        devices: of a node that talk at the same time; one alone cannot use more than `cards / devices` cards.
    """
    return replace(link, peak=link.peak * cards / devices)
