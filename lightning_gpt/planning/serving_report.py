"""Plans of a service as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning_gpt.planning.serving_plan import Demand, Fleet, ServingPlan


def money(dollars: float | None) -> str:
    """Dollars, or a dash where the price is unknown."""
    if dollars is None:
        return "-"
    return f"{dollars:,.2f}" if dollars < 1000 else f"{dollars:,.0f}"


def percent(share: float) -> str:
    """Rounded down, and never all."""
    return ">99.9999%" if share > 0.999999 else f"{math.floor(1e6 * share) / 1e4:.4f}%"


def per_million(plan: ServingPlan, demand: Demand) -> float | None:
    """Dollars for a million requests of a day whose replicas follow the load."""
    requests = demand.rate * 3600 * sum(demand.day)
    return None if plan.scaled_dollars is None else plan.scaled_dollars / requests * 1e6


def table(plans: Sequence[ServingPlan], demand: Demand) -> str:
    """A row for each option."""
    heading = ["option", "requests/s", "needed", "run", "spot", "devices", "busy", "wait P99", "P99", "available"]
    heading += ["$/hour", "$/month", "$/month scaled", "$/M requests"]
    rows = [heading]
    for plan in plans:
        replicas = plan.peak.replicas
        rows.append(
            [
                plan.name,
                f"{plan.rate_within:.4g}",
                f"{replicas.needed}",
                f"{replicas.total}",
                f"{replicas.spot}",
                f"{replicas.total * plan.devices}",
                f"{plan.queue.utilisation:.0%}",
                f"{1e3 * plan.queue.wait_quantile_s(0.99):.3g} ms",
                f"{1e3 * plan.p99_s:.3g} ms",
                percent(replicas.availability),
                money(plan.peak.dollars),
                money(plan.month(plan.fixed_dollars)),
                money(plan.month(plan.scaled_dollars)),
                money(per_million(plan, demand)),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines)


def by_hour(plan: ServingPlan) -> str:
    """Replicas that run in each hour of the day, equal hours together."""
    parts: list[tuple[int, int, int]] = []
    for hour, one in enumerate(plan.hours):
        total = one.replicas.total
        if parts and parts[-1][2] == total:
            parts[-1] = (parts[-1][0], hour + 1, total)
        else:
            parts.append((hour, hour + 1, total))
    return ", ".join(f"{first:02}-{last:02} h {total}" for first, last, total in parts)


def caveats(plans: Sequence[ServingPlan], fleet: Fleet) -> list[str]:
    """What the figures leave out, as far as it concerns these plans."""
    found = [
        "needed: by the measured rate less the headroom, and by Erlang's formula with the Allen-Cunneen correction for "
        "one queue before the places of all replicas; run: one more at least, and as many as availability takes",
        "a batch with free places serves faster than the formula says; evictions and a full cache are not in it",
        "availability: replicas fail independently; gateway, balancer, zones and waves of interruptions are not in it",
    ]
    for plan in plans:
        speed = plan.speed
        if speed.steps and plan.rate_within == speed.steps[-1].rate:
            found.append(f"{plan.name}: the largest measured rate kept the objective, a replica may carry more")
            break
    if any(plan.peak.replicas.spot for plan in plans):
        trouble = fleet.troubles
        found.append(
            f"spot: {trouble.interruptions_per_day:g} interruptions a day and replica of {trouble.replace_s:g} s each "
            "are assumed: take your cloud's"
        )
    return found


def content(plans: Sequence[ServingPlan], demand: Demand, fleet: Fleet) -> dict[str, Any]:
    """Everything, for a JSON file."""
    rows = []
    for plan in plans:
        replicas = plan.peak.replicas
        rows.append(
            {
                "name": plan.name,
                "source": plan.speed.source,
                "rate_within": plan.rate_within,
                "throughput": plan.speed.throughput,
                "places": plan.speed.places,
                "tokens_out": plan.speed.tokens_out,
                "devices_per_replica": plan.devices,
                "replicas": {**asdict(replicas), "total": replicas.total},
                "devices": replicas.total * plan.devices,
                "utilisation": plan.queue.utilisation,
                "waiting": plan.queue.waiting,
                "mean_wait_s": plan.queue.mean_wait_s,
                "wait_p99_s": plan.queue.wait_quantile_s(0.99),
                "p99_s": plan.p99_s,
                "dollars_per_hour": plan.peak.dollars,
                "dollars_per_month": plan.month(plan.fixed_dollars),
                "dollars_per_month_scaled": plan.month(plan.scaled_dollars),
                "dollars_per_million_requests": per_million(plan, demand),
                "hours": [{"rate": h.rate, "replicas": h.replicas.total, "dollars": h.dollars} for h in plan.hours],
            }
        )
    return {"demand": asdict(demand), "fleet": asdict(fleet), "options": rows}
