import random

import pytest

from lightning_gpt.serving.breaker import BreakerConfig, CircuitBreaker

CONFIG = BreakerConfig(window_s=10, min_calls=10, max_failure_share=0.5, max_in_a_row=6, cool_down_s=4, probes=2)


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(CONFIG, clock)


def call(breaker, good):
    ticket = breaker.allow()
    assert ticket
    (breaker.succeeded if good else breaker.failed)(ticket)


def test_failures_in_a_row_open_it_and_probes_close_it(breaker, clock):
    for _ in range(6):
        assert breaker.state == "closed"
        call(breaker, False)
    assert breaker.state == "open"
    assert breaker.retry_after_s == pytest.approx(4)
    clock.now += 3.9
    assert not breaker.allow()
    clock.now += 0.1
    assert breaker.state == "half_open"
    probes = [breaker.allow(), breaker.allow()]
    assert all(probes)
    assert not breaker.allow()
    assert breaker.retry_after_s > 0
    for ticket in probes:
        breaker.succeeded(ticket)
    assert breaker.state == "half_open"
    call(breaker, True)
    assert breaker.state == "closed"
    assert breaker.retry_after_s == 0
    assert breaker.openings == 1
    for _ in range(5):  # what was counted before is forgotten
        call(breaker, False)
    assert breaker.state == "closed"


def test_a_share_of_failures_opens_it_once_there_are_enough_calls(breaker, clock):
    for number in range(9):
        call(breaker, number % 2 == 0)
    assert breaker.state == "closed"
    call(breaker, False)
    assert breaker.state == "open"


def test_what_is_older_than_the_window_is_forgotten(breaker, clock):
    for _ in range(200):
        call(breaker, False)
        call(breaker, True)
        clock.now += 2.6  # at most 4 failures and 4 successes in 10 s
    assert breaker.state == "closed"
    clock.now += 1e7
    call(breaker, False)
    assert (breaker._good_sum, breaker._bad_sum) == (0, 1)


def test_each_relapse_doubles_the_rest_up_to_the_most(breaker, clock):
    for _ in range(6):
        call(breaker, False)
    rests = []
    for _ in range(7):
        rests.append(breaker.retry_after_s)
        clock.now += breaker.retry_after_s
        call(breaker, False)
        assert breaker.state == "open"
    assert rests == pytest.approx([4, 8, 16, 32, 60, 60, 60])
    clock.now += 60
    for _ in range(3):
        call(breaker, True)
    assert breaker.state == "closed"
    for _ in range(6):
        call(breaker, False)
    assert breaker.retry_after_s == pytest.approx(4)


def test_reports_from_before_a_change_are_not_about_it(breaker, clock):
    old = [breaker.allow() for _ in range(20)]
    for ticket in old[:6]:
        breaker.failed(ticket)
    assert breaker.state == "open"
    for ticket in old[6:10]:
        breaker.succeeded(ticket)
        breaker.failed(ticket)
    clock.now += 4
    for ticket in old[10:15]:
        breaker.succeeded(ticket)
    assert breaker.state == "half_open"
    breaker.failed(old[15])
    assert breaker.state == "half_open"
    assert breaker.openings == 1


def test_a_probe_that_is_abandoned_or_never_reported_blocks_nobody(breaker, clock):
    for _ in range(6):
        call(breaker, False)
    clock.now += 4
    breaker.abandoned(breaker.allow())
    assert [bool(breaker.allow()) for _ in range(3)] == [True, True, False]
    clock.now += CONFIG.probe_timeout_s
    assert breaker.allow()


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_plain_count_of_the_window(clock, seed):
    draw = random.Random(seed)
    breaker = CircuitBreaker(BreakerConfig(window_s=5, min_calls=8, max_failure_share=0.6, max_in_a_row=10**6), clock)
    calls = []
    for _ in range(2000):
        clock.now += draw.choice([0.0, draw.expovariate(3), draw.expovariate(0.2)])
        good = draw.random() < 0.6
        calls.append((int(clock.now), good))
        call(breaker, good)
        window = [one for second, one in calls if second > int(clock.now) - 5]
        opens = not good and len(window) >= 8 and window.count(False) >= 0.6 * len(window)
        assert (breaker.state == "open") == opens
        if opens:
            clock.now += 60
            for _ in range(3):
                call(breaker, True)
            calls = []


@pytest.mark.parametrize(
    "wrong", [{"window_s": 0}, {"max_failure_share": 0}, {"cool_down_s": 0}, {"cool_down_s": 99}, {"probes": 0}]
)
def test_numbers_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BreakerConfig(**wrong)
