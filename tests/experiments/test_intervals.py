import numpy as np
import pytest
from scipy import stats

from lightning_gpt.experiments.intervals import Estimate, estimate, t_quantile_975


@pytest.mark.parametrize("degrees", [*range(1, 41), 60, 120, 1000])
def test_quantiles_are_scipys(degrees):
    assert t_quantile_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


def test_interval_is_scipys():
    values = [1.91, 1.88, 1.95, 1.90]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.mean - found.half_width == pytest.approx(low, abs=1e-4)
    assert found.mean + found.half_width == pytest.approx(high, abs=1e-4)


def test_sign_needs_an_interval_beside_zero():
    assert Estimate(3, -0.2, 0.1).sign == -1
    assert Estimate(3, 0.2, 0.1).sign == 1
    assert Estimate(3, 0.2, 0.3).sign == 0
    assert estimate([5.0]).sign == 0
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_text():
    assert Estimate(2, -0.00001, 0.5).text(signed=True) == "+0.0000 ± 0.5000"
    assert estimate([1.25]).text(digits=2) == "1.25"
