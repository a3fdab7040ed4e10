import random

import pytest

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.quotas import QuotaLedger
from lightning_gpt.serving.rate_limits import TenantLimits, duration
from lightning_gpt.serving.tenants import Tenant


@pytest.fixture
def limits(clock):
    clock.now = 20_000 * 86400.0
    return TenantLimits(QuotaLedger(None, clock), clock)


def refusal(limits, tenant, prompt=5, new=5):
    with pytest.raises(ApiError) as refused:
        limits.admit(tenant, prompt, new)
    assert refused.value.status == 429
    assert refused.value.retry_after_s > 0
    return refused.value


def test_each_limit_is_named_with_its_value(limits, clock):
    tenant = Tenant("a", requests_per_minute=6, burst=2)
    limits.admit(tenant, 5, 5)
    limits.admit(tenant, 5, 5)
    error = refusal(limits, tenant)
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", pytest.approx(10))
    assert "requests_per_minute=6 of a" in error.message
    clock.now += 10
    limits.admit(tenant, 5, 5)
    error = refusal(limits, Tenant("b", tokens_per_day=9))
    assert (error.code, error.retry_after_s) == ("insufficient_quota", pytest.approx(86390))
    assert error.body()["error"]["type"] == "insufficient_quota"
    assert "tokens_per_day=9" in error.message
    tenant = Tenant("c", tokens_per_minute=60)
    limits.admit(tenant, 30, 30)
    error = refusal(limits, tenant)
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", pytest.approx(10))
    assert "tokens_per_minute=60" in error.message
    tenant = Tenant("d", max_parallel=1)
    lease = limits.admit(tenant, 5, 5)
    assert refusal(limits, tenant).code == "too_many_parallel_requests"
    lease.settle(3)
    lease.settle(3)
    lease.refund()
    assert limits.parallel(tenant) == 0
    limits.admit(tenant, 5, 5)
    assert limits.parallel(tenant) == 1


def test_what_was_reserved_and_not_used_comes_back_and_more_is_owed(limits):
    tenant = Tenant("a", requests_per_minute=60, tokens_per_minute=100, tokens_per_day=1000)
    lease = limits.admit(tenant, 10, 50)
    assert limits.ledger.used("a") == 60
    assert limits.headers(tenant)["x-ratelimit-remaining-tokens"] == "40"
    lease.settle(15)
    assert limits.ledger.used("a") == 15
    assert limits.headers(tenant) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "85",
        "x-ratelimit-reset-tokens": "9s",
    }
    limits.admit(tenant, 10, 10).settle(95)
    assert limits.ledger.used("a") == 110
    assert limits.headers(tenant)["x-ratelimit-remaining-tokens"] == "0"
    assert refusal(limits, tenant, 1, 0).retry_after_s == pytest.approx(11 * 0.6)
    limits.admit(Tenant("b", requests_per_minute=1), 1, 1).refund()
    limits.admit(Tenant("b", requests_per_minute=1), 1, 1)
    assert limits.headers(Tenant("z")) == {}


def test_refused_requests_use_nothing_up(limits):
    tenant = Tenant("a", requests_per_minute=100, tokens_per_minute=50, tokens_per_day=100)
    limits.admit(tenant, 40, 0)
    before = limits.headers(tenant), limits.ledger.used("a")
    for _ in range(50):
        refusal(limits, tenant, 20, 0)
        refusal(limits, tenant, 90, 0)
    assert (limits.headers(tenant), limits.ledger.used("a")) == before


def test_new_limits_count_what_was_used_under_the_old(limits):
    limits.admit(Tenant("a", requests_per_minute=10, tokens_per_day=100), 60, 0)
    tenant = Tenant("a", requests_per_minute=2, tokens_per_day=200)
    assert limits.headers(tenant)["x-ratelimit-remaining-requests"] == "1"
    limits.admit(tenant, 60, 0)
    assert refusal(limits, tenant).code == "rate_limit_exceeded"
    assert refusal(limits, Tenant("a", tokens_per_day=125)).code == "insufficient_quota"
    lease = limits.admit(Tenant("a"), 10**6, 0)
    limits.keep({"b"})
    assert limits.parallel(Tenant("a")) == 3
    lease.settle(0)
    assert limits.parallel(Tenant("a")) == 2


@pytest.mark.parametrize("seed", range(10))
def test_a_day_of_random_requests_stays_within_every_limit(limits, clock, seed):
    draw = random.Random(seed)
    tenant = Tenant("a", requests_per_minute=30, burst=5, tokens_per_minute=900, tokens_per_day=20_000, max_parallel=4)
    running, used, started = [], 0, []
    for _ in range(4000):
        clock.now += draw.expovariate(2)
        prompt, new = draw.randint(1, 50), draw.randint(1, 100)
        try:
            running.append((limits.admit(tenant, prompt, new), prompt, new))
            started.append(clock.now)
        except ApiError as error:
            assert error.status == 429
        if running and draw.random() < 0.6:
            lease, prompt, new = running.pop(draw.randrange(len(running)))
            actual = prompt + draw.randint(0, new)
            lease.settle(actual)
            used += actual
        assert len(running) == limits.parallel(tenant) <= 4
        assert limits.ledger.used("a") == used + sum(prompt + new for _, prompt, new in running) <= 20_000
    assert used > 15_000
    for first, at in enumerate(started):
        assert sum(1 for other in started[first:] if other < at + 60) <= 36


def test_times_are_written_as_openai_writes_them():
    assert [duration(s) for s in (0, 0.0204, 1, 1.5, 59.9999, 60, 372.25)] == [
        "0ms",
        "20ms",
        "1s",
        "1.5s",
        "1m0s",
        "1m0s",
        "6m12.25s",
    ]
