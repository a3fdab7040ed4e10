"""How many replicas a service needs beyond those that carry its load, when each of them fails now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DAY_S = 86400.0
MOST = 100_000
"""Replicas; more are a mistake."""


@dataclass(frozen=True)
class Troubles:
    """How often replicas go away, and how long each takes to be back."""

    failures_per_day: float = 0.2
    """Of one replica: crashes, deployments that kill it, hosts that fail."""
    restart_s: float = 60.0
    """Until it serves again: start of the process, loading the weights."""
    interruptions_per_day: float = 0.5
    """Of one spot replica, taken back by the cloud."""
    replace_s: float = 300.0
    """Until another stands in for it: finding a machine, starting, loading; less the notice that the cloud gives, in
    which it may drain."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value:g} must not be negative")

    def up(self, spot: bool) -> float:
        """Share of the time in which a replica serves: mean time between failures over that and the repair."""
        down = self.failures_per_day * self.restart_s
        if spot:
            down += self.interruptions_per_day * self.replace_s
        return DAY_S / (DAY_S + down)


def at_least(needed: int, groups: Sequence[tuple[int, float]]) -> float:
    """Probability that `needed` or more replicas are up.

    They fail independently: a zone that goes down, or a cloud that takes back many at once, is not in the figure.

    Args:
        needed: number.
        groups: (number of replicas, share of the time in which each is up).
    """
    from scipy.stats import binom

    spare = sum(count for count, _ in groups) - needed
    if spare < 0:
        return 0.0
    # down[i] = probability that i are down; more than the spare ones need not be told apart.
    numbers, down = np.arange(spare + 1), np.ones(1)
    for count, up in groups:
        down = np.convolve(down, binom.pmf(numbers, count, 1 - up))[: spare + 1]
    return min(float(down.sum()), 1.0)


@dataclass(frozen=True)
class Replicas:
    """Those of one hour."""

    needed: int
    """That carry the load."""
    on_demand: int
    spot: int
    availability: float
    """Share of the time in which enough of them are up."""

    @property
    def total(self) -> int:
        """All that run."""
        return self.on_demand + self.spot


def with_spares(needed: int, target: float, troubles: Troubles, spot_share: float, base: int) -> Replicas:
    """The fewest replicas of which enough are up for `target` of the time; always one more than needed (N+1).

    Args:
        needed: that carry the load.
        target: such as 0.999.
        troubles: of a replica.
        spot_share: of all replicas, rounded down.
        base: on demand at least, whatever the share.

    Raises:
        ValueError: no number reaches it.
    """
    for total in range(needed + 1, min(10 * needed + 100, MOST)):
        spot = min(int(spot_share * total + 1e-9), max(total - base, 0))
        found = at_least(needed, [(total - spot, troubles.up(False)), (spot, troubles.up(True))])
        if found >= target:
            return Replicas(needed, total - spot, spot, found)
    raise ValueError(
        f"availability={target:g} is not reached with any number of replicas: lower spot_share={spot_share:g}, or the "
        "rates and times of failures"
    )
