import pytest

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.guess_guard import GuessGuard


def is_refused(guard, address):
    try:
        guard.check(address)
    except ApiError as error:
        assert error.status == 429
        assert error.code == "rate_limit_exceeded"
        assert error.retry_after_s > 0
        return True
    return False


def test_who_guesses_is_refused_until_the_window_ends(clock):
    guard = GuessGuard(limit=3, window_s=60, clock=clock)
    for _ in range(3):
        assert not is_refused(guard, "1.2.3.4")
        guard.failed("1.2.3.4")
        clock.now += 10
    assert is_refused(guard, "1.2.3.4")
    assert not is_refused(guard, "1.2.3.5")
    clock.now += 29.9
    assert is_refused(guard, "1.2.3.4")
    clock.now += 0.2
    assert not is_refused(guard, "1.2.3.4")
    guard.failed("1.2.3.4")
    assert not is_refused(guard, "1.2.3.4")


def test_slow_mistakes_are_forgiven(clock):
    guard = GuessGuard(limit=3, window_s=60, clock=clock)
    for _ in range(20):
        guard.failed("1.2.3.4")
        clock.now += 31
        assert not is_refused(guard, "1.2.3.4")


def test_an_ipv6_network_is_one_address_and_a_mapped_ipv4_another(clock):
    guard = GuessGuard(limit=2, clock=clock)
    guard.failed("2001:db8:1:2::1")
    guard.failed("2001:0db8:0001:0002:ffff::2%eth0")
    assert is_refused(guard, "2001:db8:1:2:3:4:5:6")
    assert not is_refused(guard, "2001:db8:1:3::1")
    guard.failed("::ffff:9.8.7.6")
    guard.failed("9.8.7.6")
    assert is_refused(guard, "::ffff:9.8.7.6")
    assert not is_refused(guard, "::ffff:9.8.7.5")
    guard.failed("no:address")


def test_it_remembers_a_bounded_number_of_addresses_the_latest(clock):
    guard = GuessGuard(limit=1, size=100, clock=clock)
    for number in range(10_000):
        guard.failed(f"10.0.{number // 256}.{number % 256}")
        assert len(guard) <= 100
    assert is_refused(guard, "10.0.39.15")
    assert not is_refused(guard, "10.0.0.1")


def test_without_failures_it_costs_nothing(clock):
    GuessGuard(clock=clock).check("not even an address")
    with pytest.raises(TypeError):
        GuessGuard(clock=clock).failed(None)
