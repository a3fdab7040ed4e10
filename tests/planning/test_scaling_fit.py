from dataclasses import replace

import numpy as np
import pytest

from lightning_gpt.planning.laws import SIX_ND, ParametricLaw
from lightning_gpt.planning.runs import Run
from lightning_gpt.planning.scaling_fit import fit_runs

NOISE = 0.004


def runs_of(law, seed=0):
    random = np.random.default_rng(seed)
    return [
        Run(
            f"{n}-{d}", 1, n, n // 2, d, 7.0 * n * d, law.loss(n, d) * np.exp(NOISE * random.standard_normal()), "words"
        )
        for n in (150_000, 400_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000)
        for d in (1e6, 2e6, 4e6, 8e6, 16e6)
    ]


@pytest.fixture(scope="module")
def law():
    return ParametricLaw("planted", 1.5, 60.0, 900.0, 0.35, 0.45)


@pytest.fixture(scope="module")
def fit(law):
    return fit_runs(runs_of(law), resamples=60)


def test_an_interval_holds_about_as_many_new_runs_as_it_says(fit, law):
    """200 runs between those of the grid, with noise of their own, against 95%."""
    random = np.random.default_rng(9)
    inside = 0
    for _ in range(200):
        n, d = np.exp(random.uniform(np.log([2e5, 1.2e6]), np.log([8e6, 1.4e7])))
        outcome = law.loss(n, d) * np.exp(NOISE * random.standard_normal())
        one = fit.predict(n, d, measured=outcome)
        inside += one.low <= outcome <= one.high
    assert 176 <= inside <= 200  # 190 expected


def test_an_interval_grows_beyond_the_runs(fit):
    widths = [one.high / one.low for one in (fit.predict(2e6, 4e6), fit.predict(1e8, 1e9), fit.predict(1e10, 1e12))]
    assert widths[0] < widths[1] < widths[2]
    assert "inside the interval" in fit.predict(2e6, 4e6, measured=fit.law.loss(2e6, 4e6)).verdict
    assert "outside the interval" in fit.predict(2e6, 4e6, measured=9.0).verdict
    assert fit.predict(2e6, 4e6).verdict == ""


def test_the_cost_is_the_runs_own_or_6nd(fit, law):
    assert (fit.law.cost.factor, fit.law.cost.power) == (pytest.approx(7), pytest.approx(1))
    assert fit.flops()[0] == pytest.approx(7 * 150_000 * 1e6)
    six = fit_runs(runs_of(law), analytic=False, resamples=20)
    assert six.law.cost == SIX_ND
    assert six.flops()[0] == 6 * 150_000 * 1e6
    unknown = [replace(run, flops=None) for run in runs_of(law)]
    fallback = fit_runs(unknown, resamples=20)
    assert fallback.law.cost == SIX_ND
    assert fallback.warnings == ["some runs have no training_flops: counted as 6ND"]


def test_an_entropy_out_of_sight_is_said():
    law = ParametricLaw("far", 0.02, 8.0, 60.0, 0.12, 0.25)
    found = fit_runs(runs_of(law), resamples=20)
    assert any("E cannot be told from 0" in text for text in found.warnings)


def test_a_loss_that_rises_is_said():
    upside_down = [
        replace(run, loss=2 + 0.1 * np.log(run.parameters) - 0.05 * np.log(run.tokens))
        for run in runs_of(ParametricLaw("any", 1.5, 60.0, 900.0, 0.35, 0.45))
    ]
    found = fit_runs(upside_down, resamples=20)
    assert any("a loss that rises is no law" in text for text in found.warnings)
