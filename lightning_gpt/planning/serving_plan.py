"""Replicas, devices and cost of a service, hour by hour."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lightning_gpt.planning.serving_availability import MOST, Replicas, Troubles, with_spares
from lightning_gpt.planning.serving_queue import Queue
from lightning_gpt.planning.serving_speed import ReplicaSpeed

HOURS_A_MONTH = 365 * 24 / 12
FLAT = (1.0,) * 24


@dataclass(frozen=True)
class Demand:
    """What clients ask for, and what they are promised."""

    rate: float
    """Requests a second at the peak."""
    slo_s: float = 0.5
    """P99 of a request."""
    availability: float = 0.999
    day: tuple[float, ...] = FLAT
    """Share of the peak in each hour of a day."""
    arrival_scv: float = 1.0
    service_scv: float = 1.0
    """See Queue."""

    def __post_init__(self) -> None:
        for name in ("rate", "slo_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name.removesuffix('_s')}={value:g} must be above 0")
        if not 0 < self.availability < 1:
            raise ValueError(f"availability={self.availability:g} must be between 0 and 1, such as 0.999")
        if len(self.day) != 24 or not all(0 <= share <= 1 for share in self.day) or max(self.day) != 1:
            raise ValueError("day must have 24 shares of the peak between 0 and 1, one of them 1")
        for name in ("arrival_scv", "service_scv"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name):g} must not be negative")


@dataclass(frozen=True)
class Fleet:
    """How replicas are had."""

    price: float | None = None
    """Dollars for one device and hour; None = unknown."""
    spot_price: float | None = None
    spot_share: float = 0.0
    """Of all replicas."""
    on_demand_base: int = 1
    """Replicas that are never spot."""
    headroom: float = 0.2
    """Share of a replica's rate that is left free: for bursts, for uneven routing, for a measurement that flattered."""
    troubles: Troubles = field(default_factory=Troubles)

    def __post_init__(self) -> None:
        if not 0 <= self.spot_share <= 1:
            raise ValueError(f"spot_share={self.spot_share:g} must be between 0 and 1")
        if not 0 <= self.headroom < 1:
            raise ValueError(f"headroom={self.headroom:g} must be at least 0 and below 1")
        if self.on_demand_base < 0:
            raise ValueError(f"on_demand_base={self.on_demand_base} must not be negative")
        for name in ("price", "spot_price"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value:g} must not be negative (dollars for one device and hour)")


@dataclass(frozen=True)
class Hour:
    """One hour of the day."""

    rate: float
    """Requests a second that are planned for: the larger of this hour's and the next one's, as replicas must be there
    before their load."""
    replicas: Replicas
    dollars: float | None


@dataclass(frozen=True)
class ServingPlan:
    """A fleet of one kind of replica."""

    name: str
    speed: ReplicaSpeed
    devices: int
    """Of a replica."""
    rate_within: float
    """Requests a second of a replica within the objective, before the headroom."""
    queue: Queue
    """At the peak with only the replicas that are needed."""
    p99_s: float
    """Estimate at the peak, see p99_of."""
    peak: Hour
    hours: tuple[Hour, ...]

    @property
    def fixed_dollars(self) -> float | None:
        """A day of the peak's replicas."""
        return None if self.peak.dollars is None else 24 * self.peak.dollars

    @property
    def scaled_dollars(self) -> float | None:
        """A day of replicas that follow the load."""
        each = [hour.dollars for hour in self.hours]
        return None if None in each else math.fsum(d for d in each if d is not None)

    def month(self, dollars: float | None) -> float | None:
        """Of a day's dollars."""
        return None if dollars is None else dollars / 24 * HOURS_A_MONTH


def queue_of(rate: float, replicas: int, speed: ReplicaSpeed, demand: Demand) -> Queue:
    """The gateway's queue before the places of all replicas."""
    return Queue(replicas * speed.places, rate, speed.service_s, demand.arrival_scv, demand.service_scv)


def p99_of(rate: float, replicas: int, speed: ReplicaSpeed, demand: Demand) -> float:
    """Estimate of a request's P99: without a wait and of the wait, together, which is pessimistic, as both are seldom
    bad; at least what one replica was measured to have at its share of the rate."""
    alone = speed.latency_p99_s + queue_of(rate, replicas, speed, demand).wait_quantile_s(0.99)
    return max(alone, speed.p99_at(rate / replicas))


def needed(rate: float, speed: ReplicaSpeed, demand: Demand, headroom: float) -> int:
    """The fewest replicas that carry a rate: each within its measured rate less the headroom, and the whole within the
    objective by p99_of.

    Raises:
        ValueError: no number of replicas does.
    """
    if speed.latency_p99_s > demand.slo_s:
        raise ValueError(
            f"slo={demand.slo_s:g} s is not kept even by requests that do not wait (P99 {speed.latency_p99_s:.3g} s): "
            "shorten answers, take a faster device or weight type, or allow more time"
        )
    each = speed.rate_within(demand.slo_s, 1 - demand.availability) * (1 - headroom)
    count = max(math.ceil(rate / each - 1e-9), 1)
    while count < MOST and p99_of(rate, count, speed, demand) > demand.slo_s:
        count += 1
    if count >= MOST:
        raise ValueError(f"rate={rate:g} takes more than {MOST:,} replicas of {each:.3g} requests/s")
    return count


def plan_serving(demand: Demand, speed: ReplicaSpeed, fleet: Fleet, devices: int = 1, name: str = "") -> ServingPlan:
    """Plans a fleet.

    Args:
        demand: of the clients.
        speed: of a replica with requests as they will be (ReplicaSpeed.scaled).
        fleet: how replicas are had.
        devices: of a replica.
        name: of this option.

    Raises:
        ValueError: it cannot be had.
    """
    known: dict[float, Hour] = {}

    def hour(rate: float) -> Hour:
        if rate not in known:
            count = needed(rate, speed, demand, fleet.headroom)
            replicas = with_spares(count, demand.availability, fleet.troubles, fleet.spot_share, fleet.on_demand_base)
            known[rate] = Hour(rate, replicas, _dollars(replicas, fleet, devices))
        return known[rate]

    peak = hour(demand.rate)
    shares = [max(now, after) for now, after in zip(demand.day, (*demand.day[1:], demand.day[0]))]
    count = peak.replicas.needed
    return ServingPlan(
        name,
        speed,
        devices,
        speed.rate_within(demand.slo_s, 1 - demand.availability),
        queue_of(demand.rate, count, speed, demand),
        p99_of(demand.rate, count, speed, demand),
        peak,
        tuple(hour(demand.rate * share) for share in shares),
    )


def _dollars(replicas: Replicas, fleet: Fleet, devices: int) -> float | None:
    """Of an hour."""
    if fleet.price is None or (replicas.spot and fleet.spot_price is None):
        return None
    return devices * (replicas.on_demand * fleet.price + replicas.spot * (fleet.spot_price or 0.0))


def parse_day(text: str) -> tuple[float, ...]:
    """Shares of the peak by hour: flat; 0.3:14 = 14 hours at 0.3 of the peak, the others at the peak; or 24 numbers
    with commas between them, of which the largest is the peak.

    Raises:
        ValueError: it reads otherwise.
    """
    if text == "flat":
        return FLAT
    try:
        share, colon, hours = text.partition(":")
        if colon:
            count = int(hours)
            if not (0 <= count < 24 and 0 <= float(share) <= 1):
                raise ValueError
            return (float(share),) * count + (1.0,) * (24 - count)
        numbers = [float(word) for word in text.split(",")]
        if len(numbers) != 24 or not max(numbers) > 0 or not all(0 <= number < math.inf for number in numbers):
            raise ValueError
        return tuple(number / max(numbers) for number in numbers)
    except ValueError:
        raise ValueError(f"day={text} must be flat, SHARE:HOURS such as 0.3:14, or 24 numbers with commas") from None
