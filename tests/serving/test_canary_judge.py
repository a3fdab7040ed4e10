import random

import pytest
from scipy.stats import fisher_exact

from lightning_gpt.serving.canary_judge import CanaryJudge, JudgeConfig, fisher_greater


def run(seed, requests, share=0.1, errors=(0.01, 0.01), slower=lambda seconds, draw: seconds):
    """Requests of the canary until it is rolled back, and why; None = it never was."""
    draw, judge, canaries = random.Random(seed), CanaryJudge(JudgeConfig()), 0
    load = 1.0
    while canaries < requests:
        load = min(max(load * draw.lognormvariate(0, 0.02), 0.5), 4.0)  # the same waves for both
        seconds = 0.1 * load * draw.lognormvariate(0, 0.5)
        if draw.random() < share:
            canaries += 1
            reason = judge.canary(draw.random() >= errors[1], slower(seconds, draw))
            if reason:
                return canaries, reason
        else:
            judge.stable(draw.random() >= errors[0], seconds)
    return None


def test_the_exact_test_is_scipys():
    draw = random.Random(0)
    for _ in range(300):
        size, there = draw.randint(1, 500), draw.randint(1, 2000)
        rate = draw.choice([0.0, 0.01, 0.2, 1.0])
        hits = sum(draw.random() < rate for _ in range(size))
        hits_there = sum(draw.random() < draw.choice([rate, rate / 2]) for _ in range(there))
        table = [[hits, size - hits], [hits_there, there - hits_there]]
        expected = fisher_exact(table, alternative="greater").pvalue
        assert fisher_greater(hits, size, hits_there, there) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(("share", "errors"), [(0.05, 0.02), (0.5, 0.02), (0.9, 0.3)])
def test_a_canary_that_is_no_worse_stays(share, errors):
    assert not [found for seed in range(12) if (found := run(seed, 2000, share, (errors, errors)))]


@pytest.mark.slow
def test_less_than_one_in_a_hundred_is_rolled_back_for_nothing():
    found = [run(seed, 5000, 0.2, (0.05, 0.05)) for seed in range(600)]
    assert sum(one is not None for one in found) <= 6


@pytest.mark.parametrize(
    ("errors", "slower", "within", "said"),
    [
        ((0.01, 1.0), None, 30, "errors"),
        ((0.01, 0.3), None, 100, "errors"),
        ((0.01, 0.1), None, 300, "errors"),
        ((0.01, 0.01), lambda seconds, draw: 2 * seconds, 100, ("median", "P95")),
        ((0.01, 0.01), lambda seconds, draw: 1.5 * seconds, 400, ("median", "P95")),
        ((0.01, 0.01), lambda seconds, draw: seconds * (10 if draw.random() < 0.25 else 1), 400, "P95"),
    ],
)
def test_a_regression_is_found_within_some_hundred_requests(errors, slower, within, said):
    for seed in range(20):
        count, reason = run(seed, 4 * within, 0.1, errors, *([slower] if slower else []))
        assert count <= within, reason
        assert reason.startswith(said)


def test_a_difference_that_does_not_matter_is_let_be():
    assert run(0, 3000, 0.3, (0.0, 0.008)) is None
    assert run(0, 3000, 0.3, slower=lambda seconds, draw: 1.1 * seconds) is None


def test_a_regression_that_comes_late_is_found_too():
    draw, judge = random.Random(0), CanaryJudge()
    for number in range(100_000):
        bad = number >= 90_000
        judge.stable(draw.random() > 0.01, 0.1)
        reason = judge.canary(draw.random() > (0.3 if bad else 0.01), 0.1)
        if reason:
            assert 90_000 < number < 90_500
            return
    pytest.fail("not found")


def test_without_latencies_or_a_stable_version_there_is_nothing_to_compare():
    judge = CanaryJudge()
    assert all(judge.canary(False, 9.0) is None for _ in range(1000))
    judge = CanaryJudge()
    for _ in range(1000):
        judge.stable(True)
        assert judge.canary(True) is None


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0}, {"window": 0}, {"min_requests": 501}, {"latency_ratio": 0.5}, {"error_margin": -1}]
)
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        JudgeConfig(**wrong)
