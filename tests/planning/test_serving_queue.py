"""Erlang's formula against printed values and against queues that are played through."""

import heapq
import itertools
import math
import random

import pytest

from lightning_gpt.planning.serving_queue import Queue, erlang_b, erlang_c


@pytest.mark.parametrize(
    ("servers", "erlangs", "blocked"),
    # of the tables in use since Erlang: offered load at which 1% and 10% are lost
    [(1, 0.0101, 0.01), (5, 1.361, 0.01), (10, 4.461, 0.01), (50, 37.901, 0.01), (10, 7.511, 0.1), (2, 1.0, 0.2)],
)
def test_erlang_b_is_that_of_the_tables(servers, erlangs, blocked):
    assert erlang_b(servers, erlangs) == pytest.approx(blocked, rel=2e-3)


@pytest.mark.parametrize(
    ("servers", "erlangs", "waiting"), [(1, 0.3, 0.3), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (2, 1.5, 9 / 14)]
)
def test_erlang_c_by_hand(servers, erlangs, waiting):
    assert erlang_c(servers, erlangs) == pytest.approx(waiting)


@pytest.mark.parametrize(("servers", "erlangs"), [(4, 3.1), (12, 11.0), (60, 50.0)])
def test_erlang_c_is_its_sum(servers, erlangs):
    last = erlangs**servers / math.factorial(servers) * servers / (servers - erlangs)
    parts = sum(erlangs**number / math.factorial(number) for number in range(servers))
    assert erlang_c(servers, erlangs) == pytest.approx(last / (parts + last))


def test_thousands_of_servers_do_not_overflow():
    assert erlang_c(20_000, 15_000) < 1e-12 < erlang_c(20_000, 19_990) < 1
    assert erlang_c(3, 3) == erlang_c(3, 9) == 1


def test_one_server_by_hand():
    queue = Queue(1, rate=8, service_s=0.1)
    assert (queue.utilisation, queue.waiting) == (pytest.approx(0.8), pytest.approx(0.8))
    assert queue.mean_wait_s == pytest.approx(0.4)  # rho / (mu - lambda)
    assert queue.wait_quantile_s(0.99) == pytest.approx(math.log(80) / 2)
    fixed = Queue(1, rate=8, service_s=0.1, service_scv=0)
    assert fixed.mean_wait_s == pytest.approx(0.2)  # half, by Pollaczek and Khinchine
    full = Queue(2, rate=20, service_s=0.1)
    assert full.waiting == 1 and full.mean_wait_s == full.wait_quantile_s(0.5) == math.inf
    idle = Queue(5, rate=0, service_s=0.1)
    assert idle.waiting == idle.mean_wait_s == idle.wait_quantile_s(0.999) == 0


def played(servers, rate, service, arrivals=150_000, seed=0):
    """Waits of a first-come-first-served queue."""
    draw = random.Random(seed)
    free, now, waits = [0.0] * servers, 0.0, []
    for _ in range(arrivals):
        now += draw.expovariate(rate)
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + service(draw))
        waits.append(start - now)
    waits.sort()
    return sum(waits) / arrivals, sum(wait > 0 for wait in waits) / arrivals, waits[int(0.99 * arrivals)]


@pytest.mark.parametrize(("servers", "rate"), [(1, 7.0), (4, 34.0), (16, 150.0)])
def test_exponential_services_wait_as_the_formula_says(servers, rate):
    mean, waiting, late = played(servers, rate, lambda draw: draw.expovariate(10.0))
    queue = Queue(servers, rate, 0.1)
    assert waiting == pytest.approx(queue.waiting, abs=0.02)
    assert mean == pytest.approx(queue.mean_wait_s, rel=0.1)
    assert late == pytest.approx(queue.wait_quantile_s(0.99), rel=0.1)


@pytest.mark.parametrize(("servers", "rate"), [(1, 8.0), (4, 34.0), (16, 145.0)])
def test_equal_services_wait_about_half(servers, rate):
    """The correction is an approximation: within a sixth in the mean; the tail is overstated rather than hidden."""
    mean, _, late = played(servers, rate, lambda draw: 0.1)
    queue = Queue(servers, rate, 0.1, service_scv=0)
    assert mean == pytest.approx(queue.mean_wait_s, rel=0.17)
    assert late < 1.1 * queue.wait_quantile_s(0.99)


def test_more_of_anything_but_servers_waits_longer():
    usual = {"servers": 8, "rate": 70.0, "service_s": 0.1, "arrival_scv": 1.0, "service_scv": 1.0}
    for name, factors in (
        ("rate", (0.2, 0.5, 1, 1.1)),
        ("service_s", (0.2, 0.5, 1, 1.1)),
        ("arrival_scv", (0.5, 1, 4)),
        ("service_scv", (0, 1, 4)),
    ):
        found = [Queue(**{**usual, name: usual[name] * factor}).wait_quantile_s(0.99) for factor in factors]
        assert all(a <= b for a, b in itertools.pairwise(found)), name
    found = [Queue(servers, 70.0, 0.1).mean_wait_s for servers in range(8, 20)]
    assert all(a > b for a, b in itertools.pairwise(found))
