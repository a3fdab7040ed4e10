"""`lightning-gpt plan serving`: replicas, devices and cost of a service, from measured figures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gpt.planning.serving_plan import ServingPlan
    from lightning_gpt.planning.serving_speed import ReplicaSpeed


def plan_serving(
    rate: float | None = None,
    load: str | None = None,
    bench: str | None = None,
    tokens_per_s: float | None = None,
    latency: float | None = None,
    tokens_in: int = 64,
    tokens_out: float | None = None,
    slo: float = 0.5,
    availability: float = 0.999,
    gpus: str = "cpu",
    price: float | None = None,
    measured_replicas: int = 1,
    options: str | None = None,
    name: str = "measured",
    headroom: float = 0.2,
    day: str = "flat",
    spot_share: float = 0.0,
    spot_price: float | None = None,
    on_demand_base: int = 1,
    failures_per_day: float = 0.2,
    restart_s: float = 60.0,
    interruptions_per_day: float = 0.5,
    replace_s: float = 300.0,
    arrival_scv: float = 1.0,
    service_scv: float = 1.0,
    figure: str | None = None,
    json: str | None = None,
) -> None:
    """Replicas, devices and cost for a rate and an objective, from what a replica was measured to serve.

    The measurement is one of --load, --bench, or --tokens_per_s with --latency. A replica carries the largest rate
    whose P99 was within the objective, less the headroom; the queue before all replicas is checked by Erlang's formula
    (planning/serving_queue.py), and spare replicas are added until enough are up for the availability
    (planning/serving_availability.py).

    Args:
        rate: requests a second at the peak.
        load: results.json of lightning-gpt load with --steps, or several of one rate each with commas between them.
        bench: bench.json of lightning-gpt bench.
        tokens_per_s: new tokens a second of a replica with a full batch.
        latency: seconds of a request in a full batch.
        tokens_in: of a prompt; only bench knows what it costs, the others are taken as measured.
        tokens_out: new tokens of a request; null = as measured by load, else 64.
        slo: seconds that 99% of requests may take.
        availability: share of the time in which enough replicas must be up.
        gpus: devices of a replica, such as 1xL4 or 2xH100; cpu = processors, whose price
            must be given.
        price: US dollars for one device and hour, instead of the table's list price.
        measured_replicas: of the service that load measured.
        options: other weight types by their speed over the measured one, such as int8=1.48,w4=0.9@1 (@ = devices of a
            replica), or benchmarks/results/inference.json:gpt2-16 for what was measured against bfloat16.
        name: of the measured option.
        headroom: share of a replica's rate to leave free.
        day: shares of the peak by hour: flat, 0.3:14 = 14 hours at 0.3, or 24 numbers with commas between them.
        spot_share: share of the replicas that are spot.
        spot_price: US dollars for one spot device and hour; null = 0.4 of the price, to be looked up.
        on_demand_base: replicas that are never spot.
        failures_per_day: of one replica.
        restart_s: seconds until a failed replica serves again.
        interruptions_per_day: of one spot replica.
        replace_s: seconds until another stands in for an interrupted one.
        arrival_scv: burstiness: squared coefficient of variation of times between requests, 1 = Poisson.
        service_scv: the same of the times of requests, 0 = all alike, 1 = exponential.
        figure: PNG of replicas by the hour and of costs.
        json: file for all numbers.
    """
    from lightning_gpt.planning.accelerators import PRICES_OF, parse_machine
    from lightning_gpt.planning.serving_availability import Troubles
    from lightning_gpt.planning.serving_plan import Demand, Fleet, parse_day
    from lightning_gpt.planning.serving_plan import plan_serving as planned
    from lightning_gpt.planning.serving_report import by_hour, caveats, content, table
    from lightning_gpt.planning.serving_speed import ratios_of

    if rate is None:
        raise ValueError("rate: give the requests a second at the peak, such as --rate 1000")
    if tokens_in < 1 or (tokens_out is not None and not 1 <= tokens_out < float("inf")):
        raise ValueError(f"tokens_in={tokens_in} and tokens_out={tokens_out} must be at least 1")
    demand = Demand(rate, slo, availability, parse_day(day), arrival_scv, service_scv)
    machine = parse_machine(gpus, price=price, peak_flops=1.0)  # its speed is not asked for: it was measured
    each = machine.accelerator.price if price is None else price
    known = price is not None or each > 0
    spot = spot_price if spot_price is not None or not known else 0.4 * each
    troubles = Troubles(failures_per_day, restart_s, interruptions_per_day, replace_s)
    fleet = Fleet(each if known else None, spot, spot_share, on_demand_base, headroom, troubles)
    speed, note = _speed(load, bench, tokens_per_s, latency, tokens_in, tokens_out, slo, measured_replicas)
    kinds: dict[str, tuple[float, int | None]] = {name: (1.0, None), **(ratios_of(options) if options else {})}
    plans, refused = [], []
    for option, (ratio, devices) in kinds.items():
        try:
            plans.append(planned(demand, speed.scaled(1 / ratio), fleet, devices or machine.devices, option))
        except ValueError as error:
            if len(kinds) == 1:
                raise
            refused.append(f"{option}: {error}")
    if not plans:
        raise ValueError("; ".join(refused))
    print(f"measured   {speed.source}{note}")
    print(f"replica    {machine.devices} x {machine.accelerator.title}, {_prices(fleet, price, PRICES_OF)}")
    print(f"asked      {rate:,.10g} requests/s, P99 {1e3 * slo:g} ms, {100 * availability:g}% available\n")
    print(table(plans, demand))
    print("".join(f"\n{line}" for line in refused))
    if len(set(demand.day)) > 1:
        for plan in plans:
            print(f"{plan.name} by the hour: {by_hour(plan)}")
        print()
    print("\n".join(f"- {line}" for line in caveats(plans, fleet)))
    if json:
        _write(json, content(plans, demand, fleet))
        print(f"\n{json}")
    if figure:
        print(f"\n{_draw(figure, plans, demand)}")


def _speed(
    load: str | None,
    bench: str | None,
    tokens_per_s: float | None,
    latency: float | None,
    tokens_in: int,
    tokens_out: float | None,
    slo: float,
    replicas: int,
) -> tuple["ReplicaSpeed", str]:
    """The replica with requests of the asked length, and how it differs from what was measured.

    Raises:
        ValueError: not exactly one measurement.
    """
    from lightning_gpt.planning.serving_speed import of_bench, of_flags, of_load

    by_hand = tokens_per_s is not None or latency is not None
    given = [word for word, is_given in (("--load", load), ("--bench", bench), ("--tokens_per_s", by_hand)) if is_given]
    if len(given) != 1:
        got = ", ".join(given) or "none"
        raise ValueError(f"give one measurement of --load, --bench, or --tokens_per_s with --latency; got {got}")
    if bench:
        return of_bench(bench, tokens_in, tokens_out or 64, slo), f", {tokens_in} tokens in, {tokens_out or 64:g} out"
    if load:
        speed = of_load(load.split(","), replicas)
        if tokens_out is None or abs(tokens_out / speed.tokens_out - 1) < 0.02:
            return speed, f", {speed.tokens_out:.4g} new tokens a request"
        note = f", {speed.tokens_out:.4g} new tokens a request; stretched to {tokens_out:g}, which is not measured"
        return speed.scaled(tokens_out / speed.tokens_out), note
    if tokens_per_s is None or latency is None:
        raise ValueError("tokens_per_s and latency go together: give both")
    return of_flags(tokens_per_s, latency, tokens_out or 64), f", {tokens_out or 64:g} new tokens a request"


def _prices(fleet: Any, given: float | None, age: str) -> str:
    if fleet.price is None:
        return "price unknown: give --price"
    text = f"{fleet.price:g} $ an hour and device"
    text += "" if given is not None else f" (list price of {age}, change me: --price)"
    return text + (f", {fleet.spot_price:g} $ spot" if fleet.spot_share and fleet.spot_price is not None else "")


def _write(path: str, values: dict[str, Any]) -> None:
    import json
    import os
    from pathlib import Path

    temporary = Path(path).with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _draw(path: str, plans: list["ServingPlan"], demand: Any) -> str:
    from pathlib import Path

    from lightning_gpt.planning.serving_figure import draw_serving

    return str(draw_serving(Path(path), plans, demand))
