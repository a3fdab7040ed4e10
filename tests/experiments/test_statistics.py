import numpy as np
import pytest
from scipy import stats

from lightning_gpt.experiments.statistics import (
    LEVEL,
    POWER,
    compare,
    estimate,
    hedges_g,
    holm,
    paired_p,
    pairs_needed,
    power,
    power_statement,
    visible_difference,
)

VALUES = [1.91, 1.88, 1.95, 1.90]


def test_intervals_are_scipys():
    found = estimate(VALUES)
    low, high = stats.t.interval(0.95, 3, np.mean(VALUES), stats.sem(VALUES))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(np.std(VALUES, ddof=1))
    scipys = stats.bootstrap((VALUES,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert found.bootstrap == pytest.approx((scipys.low, scipys.high))


def test_what_has_no_spread_has_no_interval():
    assert estimate([5.0]).half_width is None and estimate([5.0]).sign == 0
    assert estimate([1.0, 2.0]).bootstrap is None
    assert estimate([2.0, 2.0, 2.0]).bootstrap is None and estimate([2.0, 2.0, 2.0]).half_width == 0
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_text():
    assert estimate([-0.00001, 0.00001]).text(signed=True) == "+0.0000 ± 0.0001"
    assert estimate([1.25]).text(digits=2) == "1.25"


def test_the_paired_test_is_scipys():
    ours, theirs = [1.80, 1.85, 1.82], [1.90, 1.94, 1.92]
    assert paired_p(np.subtract(ours, theirs)) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert paired_p([0.1]) is None
    assert (paired_p([0.0, 0.0]), paired_p([0.5, 0.5])) == (1.0, 0.0)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04: times 4, 3, 2, 1, and never below an earlier one
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_effect_size_is_unbiased():
    """Its mean over many small samples of a known effect is that effect; without the correction it is 1.25 of it."""
    samples = np.random.default_rng(3).normal(0.8, 1.0, (40_000, 5))
    assert np.mean([hedges_g(sample) for sample in samples]) == pytest.approx(0.8, abs=0.01)
    assert hedges_g([1.0, 2.0]) is None and hedges_g([1.0, 1.0, 1.0]) is None


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_power_is_what_a_planted_effect_shows(n):
    """The share of simulated experiments that find a planted difference is the power that was foretold."""
    deviation, repetitions = 0.02, 20_000
    planted = visible_difference(n, deviation)
    assert power(n, planted, deviation) == pytest.approx(POWER, abs=1e-6)
    samples = np.random.default_rng(n).normal(planted, deviation, (repetitions, n))
    found = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < LEVEL)
    assert found == pytest.approx(POWER, abs=4 * np.sqrt(POWER * (1 - POWER) / repetitions))


def test_pairs_needed_are_the_fewest():
    needed = pairs_needed(0.01, 0.02)
    assert power(needed, 0.01, 0.02) >= POWER > power(needed - 1, 0.01, 0.02)
    assert pairs_needed(1e-6, 1.0) is None
    assert power(7, 0.0, 1.0) == pytest.approx(LEVEL)  # of no difference, the level


@pytest.mark.parametrize("variants", [1, 3])
def test_one_experiment_in_twenty_at_most_cries_wolf(variants):
    """Experiments in which no variant differs; seeds share their noise with the baseline, as real runs do.

    With one variant the rate is exactly LEVEL, so that a simulation scatters around it; with several that share a
    baseline Holm's correction is on the safe side. 100 of the experiments also go through the verdicts themselves.
    """
    experiments, generator = 20_000, np.random.default_rng(2026)
    runs = generator.normal(0, 0.03, (experiments, 1, 5)) + generator.normal(0, 0.01, (experiments, 1 + variants, 5))
    differences = runs[:, 1:] - runs[:, :1]
    p_values = stats.ttest_1samp(differences, 0.0, axis=2).pvalue
    false = p_values.min(1) * variants < LEVEL  # Holm rejects anything if and only if it rejects the smallest
    noise = np.sqrt(LEVEL * (1 - LEVEL) / experiments)
    assert false.mean() <= LEVEL + (2 * noise if variants == 1 else 0)
    chosen = [*np.flatnonzero(false)[:50], *np.flatnonzero(~false)[:50]]
    for index in chosen:
        verdicts = {one.verdict for one in compare(dict(enumerate(differences[index]))).values()}
        assert (verdicts != {"not distinguishable"}) == false[index]


def test_a_planted_effect_gets_its_verdict():
    noise = np.random.default_rng(0).normal(0, 0.01, (3, 5))
    found = compare({"down": noise[0] - 0.1, "up": noise[1] + 0.1, "none": noise[2], "alone": [0.3]})
    assert [one.verdict for one in found.values()] == [
        "better",
        "worse",
        "not distinguishable",
        "one seed: no verdict",
    ]
    assert sorted(found, key=lambda name: found[name].p_holm or 0) == sorted(found, key=lambda name: found[name].p or 0)
    assert found["alone"].p_holm is None and all(found[name].p_holm > found[name].p for name in ("down", "up"))
    text = power_statement(list(found.values()), " nats")
    assert text.startswith("With n = 5 and a (median) standard deviation of paired differences of 0.0")
    assert power_statement([found["alone"]], "") == ""
