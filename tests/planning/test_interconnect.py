import itertools
import math

import pytest

from lightning_gpt.planning.interconnect import (
    LINKS,
    Group,
    Link,
    doubling_gather,
    find_link,
    ring_all_reduce,
    ring_gather,
    share,
    tree_all_reduce,
)

PLAIN = Link("plain", "plain", 1e9, 1.0, 1e-5, "device")
NETWORK = Link("network", "network", 1e8, 1.0, 1e-4, "network")


def played_ring(bytes: float, devices: int, link: Link) -> float:
    """Seconds of a ring all-reduce, message by message: 2 (p - 1) rounds, in each of which every device sends a p-th
    part to its neighbour and then waits for what comes."""
    times = [0.0] * devices
    for _ in range(2 * (devices - 1)):
        arrived = [times[rank - 1] + link.latency + bytes / devices / link.bandwidth for rank in range(devices)]
        times = [max(mine, got) for mine, got in zip(times, arrived)]
    return max(times)


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 100])
def test_a_ring_takes_what_its_messages_take(devices):
    assert ring_all_reduce(4e6, devices, PLAIN) == pytest.approx(played_ring(4e6, devices, PLAIN))
    assert ring_all_reduce(4e6, devices, PLAIN) == pytest.approx(2 * ring_gather(4e6, devices, PLAIN))


def test_closed_formulas():
    # Eight devices, a megabyte: 14 messages of an eighth; 6 messages; 3 of 1/2, 1/4 and 1/8 of it.
    assert ring_all_reduce(1e6, 8, PLAIN) == pytest.approx(14 * (1e-5 + 1.25e5 / 1e9))
    assert tree_all_reduce(1e6, 8, PLAIN) == pytest.approx(6e-5 + 2e-3)
    assert doubling_gather(1e6, 8, PLAIN) == pytest.approx(3e-5 + (0.5 + 0.25 + 0.125) * 1e-3)
    assert tree_all_reduce(1e6, 1, PLAIN) == ring_all_reduce(1e6, 1, PLAIN) == 0
    # Two devices: everything is one exchange and back.
    assert Group(2, 1, PLAIN, NETWORK).all_reduce(1e6) == pytest.approx(2 * (1e-5 + 0.5e-3))


def test_short_messages_climb_trees_and_long_ones_go_round():
    group = Group(64, 1, PLAIN, NETWORK, rings=True)
    assert group.all_reduce(100) == tree_all_reduce(100, 64, PLAIN)
    assert group.all_reduce(1e9) == ring_all_reduce(1e9, 64, PLAIN)


def test_nodes_exchange_only_their_share():
    """Four nodes of eight with one slow card each: every card carries 2 x 3/4 of the bytes once, not eight times."""
    group = Group(8, 4, PLAIN, share(NETWORK, cards=1, devices=8), rings=True)
    bytes = 8e8
    least = 2 * 3 / 4 * bytes / NETWORK.bandwidth  # no all-reduce among four nodes gets less through their cards
    assert least <= group.all_reduce(bytes) < 1.2 * least
    naive = ring_all_reduce(bytes, 32, share(NETWORK, cards=1, devices=8))
    assert group.all_reduce(bytes) < naive / 4
    assert group.all_gather(bytes) == pytest.approx(group.all_reduce(bytes) / 2, rel=0.05)


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("local", [1, 2, 8])
@pytest.mark.parametrize("rings", [True, False])
def test_more_bytes_slower_links_and_more_nodes_take_longer(rings, local, operation):
    def seconds(nodes: int, bytes: float, between: Link = NETWORK) -> float:
        return getattr(Group(local, nodes, PLAIN, between, rings), operation)(bytes)

    # Recursive doubling wants powers of two: three nodes around a ring may take longer than four.
    counts = [1, 2, 3, 4, 8, 64, 512, 4096] if rings else [1, 2, 4, 8, 64, 512, 4096]
    for bytes in (0, 1e3, 1e6, 1e9):
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(seconds(nodes, bytes) for nodes in counts))
        assert seconds(64, bytes) < seconds(64, 2 * bytes + 1)
        assert seconds(64, bytes, share(NETWORK, 4, 8)) <= seconds(64, bytes, share(NETWORK, 1, 8))


def test_thousands_of_devices_cost_latency_not_bandwidth():
    card = share(LINKS["infiniband-400g"], 8, 8)
    few, many = (Group(8, nodes, LINKS["nvlink4"], card, rings=True).all_reduce(10e9) for nodes in (16, 1024))
    assert few < many < 1.3 * few


def test_links_by_name():
    assert find_link(" NVLink3 ").bandwidth == pytest.approx(234e9)
    assert find_link("infiniband_200g").kind == "network"
    with pytest.raises(ValueError, match="did you mean ethernet-25g"):
        find_link("ethernt-25g")
    for link in LINKS.values():
        assert 0 < link.reached <= 1 and link.latency > 0 and math.isfinite(link.bandwidth)
