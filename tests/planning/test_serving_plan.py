"""Replicas for a rate and an objective: by hand, and that more is asked for when more is needed."""

import itertools
import json
import random
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from lightning_gpt.planning.serving_availability import Troubles, at_least, with_spares
from lightning_gpt.planning.serving_plan import FLAT, Demand, Fleet, needed, p99_of, parse_day, plan_serving
from lightning_gpt.planning.serving_speed import of_bench, of_flags, of_load, ratios_of

SPEED = of_flags(tokens_per_s=1600, latency_s=0.1, tokens_out=16)  # 100 requests/s, 10 at once
SURE = Troubles(0, 0, 0, 0)


def step(rate, p99_ms, errors=0.0, rate_to=None, ok=1000):
    latency = {"mean": p99_ms / 3, "p50": p99_ms / 4, "p99": p99_ms}
    return {
        "rate_from": rate,
        "rate_to": rate if rate_to is None else rate_to,
        "rate_ok": rate * (1 - errors),
        "ok": ok,
        "error_rate": errors,
        "tokens": 16 * ok,
        "latency_ms": latency,
    }


STAIRCASE = [step(50, 80), step(100, 120), step(200, 400), step(200, 700, rate_to=400), step(300, 900, 0.01)]


@pytest.fixture
def staircase(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"steps": STAIRCASE, "totals": {}}))
    return path


def test_a_replica_by_hand():
    assert (SPEED.throughput, SPEED.places, SPEED.service_s) == (100, 10, pytest.approx(0.1))
    slower = SPEED.scaled(2)
    assert (slower.throughput, slower.places, slower.latency_p99_s) == (50, 10, 0.2)
    assert SPEED.rate_within(0.5, 0.001) == 100


def test_a_staircase_gives_the_largest_rate_that_kept_the_objective(staircase):
    speed = of_load([staircase])
    assert [one.rate for one in speed.steps] == [50, 100, 200, pytest.approx(297)]
    assert speed.rate_within(0.5, 0.001) == 200
    assert speed.rate_within(0.1, 0.001) == 50
    assert speed.rate_within(2.0, 0.001) == 200  # at 300 one in a hundred failed
    assert speed.rate_within(2.0, 0.02) == pytest.approx(297)
    assert (speed.tokens_out, speed.latency_p99_s) == (16, 0.08)
    assert speed.places == int(297 * 0.02)  # Little, with the time of the quietest step
    with pytest.raises(ValueError, match=r"slo=0\.05 s is kept at no measured rate \(best P99 0\.08 s\)"):
        speed.rate_within(0.05, 0.001)
    assert of_load([staircase], replicas=2).rate_within(0.5, 0.001) == 100
    # twice the work: half the rate takes twice the time
    assert speed.scaled(2).rate_within(1.0, 0.001) == 100
    assert speed.scaled(2).rate_within(0.5, 0.001) == 50


def test_p99_grows_with_the_rate_as_measured(staircase):
    speed = of_load([staircase])
    assert speed.p99_at(1) == speed.p99_at(50) == pytest.approx(0.08)
    assert speed.p99_at(75) == pytest.approx(0.1) and speed.p99_at(150) == pytest.approx(0.26)
    assert speed.p99_at(298) == float("inf") and SPEED.p99_at(1e9) == 0.1
    # at 160 a replica, 80% of what holds
    demand = Demand(rate=1600)
    plan = plan_serving(demand, speed, Fleet())
    assert plan.peak.replicas.needed == 10 and plan.p99_s == pytest.approx(0.288)
    # a lower rate that did worse than a higher one is believed
    rows = replace(speed, steps=(speed.steps[0], replace(speed.steps[1], p99_s=0.6), speed.steps[2]))
    assert rows.rate_within(0.5, 0.001) == 200 and rows.p99_at(150) == 0.6
    assert needed(1600, rows, demand, 0.2) > 16


def test_runs_of_one_rate_each_are_a_staircase(tmp_path):
    paths = []
    for number, row in enumerate(STAIRCASE[:3]):
        totals = {key: value for key, value in row.items() if not key.startswith("rate_to")}
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"settings": {"rate_to": None}, "steps": [], "totals": totals}))
    assert of_load(reversed(paths)).rate_within(0.5, 0.001) == 200


def test_what_the_load_generator_writes_is_read(tmp_path):
    summary = pytest.importorskip("lightning_gpt.load.summary")
    from lightning_gpt.load.recorder import Samples
    from lightning_gpt.load.result import plain

    due = np.arange(0, 10, 0.01)
    none, alike = np.full(1000, np.nan), np.zeros(1000, int)
    samples = Samples(due, 0 * due, 0 * due + 0.03, none, none, alike + 16, alike, alike, ["ok"])
    rows = [{"rate_from": 100.0, "rate_to": 100.0, **summary.figures(samples, 0.0, 10.0, 0.5)}]
    (tmp_path / "results.json").write_text(json.dumps(plain({"settings": {}, "steps": rows, "totals": {}})))
    speed = of_load([tmp_path / "results.json"])
    assert speed.throughput == pytest.approx(100, rel=0.01) and speed.tokens_out == 16
    assert speed.latency_p99_s == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "load=.* cannot be read"),
        ("[]", "must hold a JSON object"),
        ('{"speeds": []}', "is not a results.json of lightning-gpt load: 'steps' is missing"),
        (json.dumps({"steps": [{"rate_from": 1, "rate_to": 1, "latency_ms": {}}]}), "ok is missing"),
        (json.dumps({"steps": [STAIRCASE[3]]}), "no step of one rate has answers"),
        (json.dumps({"steps": [step(9, 1, ok=0)]}), "no step of one rate has answers"),
        (json.dumps({"settings": {"rate_to": 9}, "steps": [], "totals": STAIRCASE[0]}), "no step of one rate"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        of_load([tmp_path / "x.json"])


def test_a_bench_gives_the_best_batch_within_the_objective(tmp_path):
    rows = []
    for prompt, batch, first, token in (
        (64, 1, 0.02, 0.01),
        (64, 8, 0.1, 0.02),
        (64, 64, 0.8, 0.05),
        (512, 8, 0.5, 0.02),
    ):
        times = {"first_token_seconds": first, "inter_token_seconds": token, "inter_token_seconds_p95": token * 1.1}
        rows.append({"batch": batch, "prompt": prompt, **times})
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"speeds": rows}))
    speed = of_bench(path, tokens_in=32, tokens_out=11, slo_s=0.5)
    assert speed.places == 8 and speed.throughput == pytest.approx(8 / 0.25)
    assert speed.latency_p99_s == pytest.approx(0.27)
    assert of_bench(path, 64, 11, 2.0).places == 64
    assert of_bench(path, 400, 11, 2.0).throughput == pytest.approx(8 / (0.5 * 400 / 512 + 0.2))
    with pytest.raises(ValueError, match=r"slo=0\.05 s is kept by no batch"):
        of_bench(path, 64, 11, 0.05)


def test_other_weight_types(tmp_path):
    assert ratios_of("int8=1.5, w4=0.9@2") == {"int8": (1.5, None), "w4": (0.9, 2)}
    cells = [
        {"engine": "ours", "workload": "x", "setting": "bfloat16", "tokens_per_second": 100.0},
        {"engine": "ours", "workload": "x", "setting": "int8", "tokens_per_second": 150.0},
        {"engine": "vllm", "workload": "x", "setting": "int4", "tokens_per_second": 999.0},
    ]
    path = tmp_path / "inference.json"
    path.write_text(json.dumps({"cells": cells}))
    assert ratios_of(f"{path}:x,w4=1.1") == {"int8": (1.5, None), "w4": (1.1, None)}
    for wrong in ("int8=fast", "int8=-1", "w4=1@0", "int8", f"{path}:y"):
        with pytest.raises(ValueError, match="options="):
            ratios_of(wrong)


def test_availability_by_hand():
    assert Troubles(2, 4320, 0, 0).up(spot=False) == pytest.approx(86400 / 95040)
    assert Troubles(0, 0, 1, 864).up(spot=True) == pytest.approx(1 / 1.01)
    assert Troubles(0, 9, 1, 864).up(spot=False) == 1
    assert at_least(1, [(2, 0.9)]) == pytest.approx(0.99)
    assert at_least(2, [(3, 0.9)]) == pytest.approx(0.9**3 + 3 * 0.9**2 * 0.1)
    assert at_least(2, [(1, 0.9), (1, 0.5)]) == pytest.approx(0.45)
    assert at_least(1, [(1, 0.9), (1, 0.5)]) == pytest.approx(0.95)
    assert at_least(3, [(1, 0.9), (1, 0.5)]) == 0
    assert at_least(0, [(4, 0.5)]) == pytest.approx(1)
    assert at_least(60, [(70, 0.97)]) == pytest.approx(
        sum(comb(70, up) * 0.97**up * 0.03 ** (70 - up) for up in range(60, 71))
    )


def test_availability_is_what_is_seen():
    draw, up = random.Random(0), 0
    for _ in range(20_000):
        up += sum(draw.random() < 0.95 for _ in range(4)) + sum(draw.random() < 0.8 for _ in range(6)) >= 8
    assert at_least(8, [(4, 0.95), (6, 0.8)]) == pytest.approx(up / 20_000, abs=0.015)


def test_spares():
    assert with_spares(4, 0.999, SURE, 0.0, 1).total == 5  # one more even where nothing fails
    often = Troubles(0, 0, interruptions_per_day=1, replace_s=9600)  # up for 0.9
    assert with_spares(1, 0.999, often, 1.0, 0).total == 3
    assert with_spares(1, 0.98, often, 1.0, 0).total == 2
    mixed = with_spares(6, 0.99, often, 0.5, 1)
    assert (mixed.on_demand, mixed.spot) == (4, 4) and mixed.availability >= 0.99
    assert with_spares(3, 0.99, often, 1.0, 2).on_demand == 2
    with pytest.raises(ValueError, match=r"availability=0\.9999 is not reached"):
        with_spares(50, 0.9999, Troubles(0, 0, 1000, 86400), 1.0, 0)


def test_replicas_by_hand():
    demand = Demand(rate=400)
    assert needed(400, SPEED, demand, headroom=0.2) == 5  # 80 each
    assert needed(401, SPEED, demand, headroom=0.2) == 6
    assert needed(0, SPEED, demand, headroom=0.2) == 1
    # no headroom: 4 would be busy all the time, with a queue that has no end
    assert needed(400, SPEED, demand, headroom=0.0) == 5
    # an objective just above the time of a request leaves no time to wait
    tight = Demand(rate=400, slo_s=0.1001)
    count = needed(400, SPEED, tight, headroom=0.0)
    assert p99_of(400, count, SPEED, tight) <= 0.1001 < p99_of(400, count - 1, SPEED, tight)
    with pytest.raises(ValueError, match="not kept even by requests that do not wait"):
        needed(1, SPEED, Demand(rate=1, slo_s=0.09), 0.2)
    with pytest.raises(ValueError, match="more than 100,000 replicas"):
        needed(1e9, SPEED, demand, 0.2)


def test_a_plan_by_hand():
    day = parse_day("0.25:12")
    fleet = Fleet(price=2.0, spot_price=0.5, spot_share=0.5, on_demand_base=1, troubles=SURE)
    plan = plan_serving(Demand(rate=400, day=day), SPEED, fleet, devices=2, name="x")
    assert (plan.peak.replicas.needed, plan.peak.replicas.on_demand, plan.peak.replicas.spot) == (5, 3, 3)
    assert plan.peak.dollars == 2 * (3 * 2.0 + 3 * 0.5)
    assert [hour.replicas.total for hour in plan.hours] == [3] * 11 + [6] * 13  # up one hour ahead of the load
    night = 2 * (2 * 2.0 + 1 * 0.5)
    assert plan.scaled_dollars == pytest.approx(11 * night + 13 * 15)
    assert plan.fixed_dollars == 24 * 15
    assert plan.month(plan.fixed_dollars) == pytest.approx(15 * 730)
    assert plan.queue.utilisation == pytest.approx(0.8)
    unknown = plan_serving(Demand(rate=400), SPEED, replace(fleet, price=None))
    assert unknown.peak.dollars is None and unknown.scaled_dollars is None


def test_more_is_needed_for_more():
    def totals(demands, fleets=None):
        fleets = fleets or [Fleet()]
        return [plan_serving(one, SPEED, fleet).peak.replicas.total for one in demands for fleet in fleets]

    usual, often = Demand(rate=900), Troubles(9, 600)
    for growing in (
        totals([replace(usual, rate=rate) for rate in (1, 50, 99, 300, 900, 5000)]),
        totals([replace(usual, slo_s=slo) for slo in (2.0, 0.5, 0.12, 0.1005)], [Fleet(headroom=0.0)]),
        totals([replace(usual, availability=share) for share in (0.9, 0.99, 0.999, 0.99999)], [Fleet(troubles=often)]),
        totals([usual], [Fleet(headroom=share) for share in (0.0, 0.2, 0.5)]),
        totals([usual], [Fleet(spot_share=s, troubles=Troubles(0.2, 60, 9, 600)) for s in (0, 0.3, 0.7, 1.0)]),
        totals([replace(usual, slo_s=0.104, arrival_scv=scv) for scv in (0.5, 1, 4, 16)], [Fleet(headroom=0.0)]),
    ):
        assert all(a <= b for a, b in itertools.pairwise(growing)) and growing[0] < growing[-1], growing
    day = parse_day("0.3:14")
    for rate in (10, 300, 5000):
        plan = plan_serving(Demand(rate=rate, day=day), SPEED, Fleet(price=1.0))
        assert plan.scaled_dollars <= plan.fixed_dollars
    faster = [plan_serving(usual, SPEED.scaled(1 / r), Fleet(price=1.0)).fixed_dollars for r in (0.5, 1, 1.5, 3)]
    assert faster == sorted(faster, reverse=True)


def test_days():
    assert parse_day("flat") == FLAT
    assert parse_day("0.5:3") == (0.5,) * 3 + (1.0,) * 21
    assert parse_day(",".join(["2"] * 23 + ["4"])) == (0.5,) * 23 + (1.0,)
    for wrong in ("night", "1,2", "0.3:24", "2:3", ",".join(["0"] * 24), ",".join(["-1"] * 23 + ["1"])):
        with pytest.raises(ValueError, match="day="):
            parse_day(wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0}, "rate=0 must"),
        ({"slo_s": -1}, "slo=-1 must"),
        ({"availability": 1}, "availability=1 must"),
        ({"arrival_scv": -1}, "arrival_scv=-1"),
        ({"day": (0.5,) * 24}, "day must"),
    ],
)
def test_demands_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        Demand(**{"rate": 10, **given})


@pytest.mark.parametrize("given", [{"headroom": 1}, {"spot_share": 2}, {"price": -1}, {"on_demand_base": -1}])
def test_fleets_that_cannot_be(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}="):
        Fleet(**given)
    with pytest.raises(ValueError, match="restart_s=-1"):
        Troubles(restart_s=-1)
