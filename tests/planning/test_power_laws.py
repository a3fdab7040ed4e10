import numpy as np
import pytest
from scipy.optimize import curve_fit

from lightning_gpt.planning.power_laws import fit_power_law, kaplan_laws


def test_an_exact_power_law():
    x = np.geomspace(1e5, 1e9, 6)
    law = fit_power_law(x, (8.8e13 / x) ** 0.076)
    assert law.exponent == pytest.approx(0.076)
    assert law.scale == pytest.approx(8.8e13, rel=1e-6)
    assert law.low == pytest.approx(law.high, abs=1e-6)
    assert law(1e6) == pytest.approx((8.8e13 / 1e6) ** 0.076)


def test_its_interval_is_students():
    random = np.random.default_rng(0)
    x = np.geomspace(1e5, 1e8, 8)
    y = (1e12 / x) ** 0.1 * np.exp(0.01 * random.standard_normal(8))
    law = fit_power_law(x, y)
    (slope, _), covariance = curve_fit(lambda t, m, c: m * t + c, np.log(x), np.log(y))
    assert law.exponent == pytest.approx(-slope, rel=1e-6)
    # t at 97.5% with 6 degrees of freedom is 2.4469
    assert law.high - law.exponent == pytest.approx(2.4469 * np.sqrt(covariance[0, 0]), rel=1e-4)


def test_it_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    x = np.geomspace(1e5, 1e8, 6)
    hits = 0
    for _ in range(300):
        law = fit_power_law(x, (1e12 / x) ** 0.1 * np.exp(0.01 * random.standard_normal(6)))
        hits += law.low <= 0.1 <= law.high
    assert 270 <= hits <= 298  # 285 expected, standard deviation 3.8


def test_the_longest_and_the_largest_runs_are_taken():
    sizes, tokens = map(np.ravel, np.meshgrid([1e5, 1e6, 1e7], [1e6, 1e7, 1e8, 1e9]))
    losses = (1e10 / sizes) ** 0.05 + (1e9 / tokens) ** 0.2
    by_size, by_tokens = kaplan_laws(sizes, tokens, losses)
    assert (by_size.of, by_size.points, by_size.at) == ("parameters", 3, "1e+09 tokens")
    assert (by_tokens.of, by_tokens.points, by_tokens.at) == ("tokens", 4, "1e+07 parameters")
    assert kaplan_laws(sizes[:2], tokens[:2], losses[:2]) == []


def test_a_loss_that_does_not_depend_on_the_size_has_no_law():
    """Its scale would be beyond what a float holds."""
    x = np.geomspace(1e5, 1e8, 4)
    assert fit_power_law(x, np.full(4, 2.0)) is None
    assert fit_power_law(x, 2.0 * x**-1e-6) is None
    assert kaplan_laws(x, np.full(4, 1e7), np.full(4, 2.0)) == []
