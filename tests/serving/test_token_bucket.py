import random

import pytest

from lightning_gpt.serving.token_bucket import TokenBucket


@pytest.mark.parametrize("seed", range(20))
def test_no_stretch_of_time_gets_more_than_rate_and_burst_and_a_promise_is_kept(clock, seed):
    draw = random.Random(seed)
    rate, burst = draw.uniform(0.01, 100), draw.choice([1, 7, 50])
    bucket = TokenBucket(rate, burst, clock)
    granted, refused = [], 0
    for _ in range(3000):
        clock.now += draw.choice([0.0, draw.expovariate(rate), draw.expovariate(rate / 20)])
        n = draw.randint(1, burst)
        wait = bucket.take(n)
        if wait:
            refused += 1
            if draw.random() < 0.3:
                clock.now += wait * 0.999
                assert bucket.wait_s(n) > 0
                clock.now += wait * 0.001 + 1e-9 * clock.now
                assert bucket.take(n) == 0.0
                granted.append((clock.now, n))
        else:
            granted.append((clock.now, n))
    assert refused > 100
    for first in range(0, len(granted), 17):
        total = 0
        for at, n in granted[first : first + 200]:
            total += n
            assert total <= burst + rate * (at - granted[first][0]) + 1e-3 * burst


def test_debt_is_paid_before_anything_is_granted(clock):
    bucket = TokenBucket(2.0, 10, clock)
    bucket.debit(30)
    assert bucket.level == -20
    assert bucket.take(1) == pytest.approx(10.5)
    clock.now += 10.5
    assert bucket.take(1) == 0.0
    bucket.give_back(1000)
    assert bucket.level == 10
    assert bucket.full_in_s() == 0.0


def test_what_is_larger_than_the_bucket_waits_until_it_is_full(clock):
    bucket = TokenBucket(1.0, 10, clock)
    assert bucket.take(1) == 0.0
    assert bucket.take(25) == pytest.approx(1.0)
    clock.now += 1
    assert bucket.take(25) == 0.0
    assert bucket.level == -15


def test_new_numbers_do_not_forget_what_was_used_nor_does_a_clock_that_goes_back_fill(clock):
    bucket = TokenBucket(1.0, 10, clock)
    bucket.take(8)
    bucket.configure(100.0, 20)
    assert bucket.level == 12
    bucket.configure(1.0, 5)
    assert bucket.level == -3
    clock.now -= 100
    assert bucket.level == -3
    clock.now += 101
    assert bucket.level == pytest.approx(-2)
