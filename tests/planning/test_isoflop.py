import numpy as np
import pytest

from lightning_gpt.planning.isoflop import isoflop
from lightning_gpt.planning.laws import BESIROGLU, ParametricLaw


def test_a_parabola_is_found_exactly():
    """Losses that are parabolas in log N with minima at 1e-3 C^0.5."""
    budgets = [1e18, 1e19, 1e20]
    sizes, flops, losses = [], [], []
    for budget in budgets:
        best = 1e-3 * budget**0.5
        for factor in (0.25, 0.5, 1, 2, 4):
            sizes.append(best * factor)
            flops.append(budget * (1 + 0.01 * factor))
            losses.append(2 + 0.1 * np.log(factor) ** 2)
    found = isoflop(sizes, flops, losses)
    assert not found.profiles[0].interpolated
    for one, budget in zip(found.profiles, budgets):
        assert one.best_size == pytest.approx(1e-3 * budget**0.5)
        assert one.loss(one.best_size) == pytest.approx(2)
    assert found.a == pytest.approx(0.5)
    assert found.factor == pytest.approx(1e-3, rel=0.05)


def test_profiles_of_a_law_have_its_exponent():
    """Hoffmann's approach 2 on losses of an approach-3 law with equal exponents, for which a parabola is unbiased."""
    law = ParametricLaw("even", 1.8, 400, 400, 0.34, 0.34)
    grid = [
        (budget, law.optimum(budget)[0] * factor) for budget in (1e18, 1e20, 1e22) for factor in (0.4, 0.7, 1, 1.5, 2.5)
    ]
    flops, sizes = map(np.array, zip(*grid))
    found = isoflop(sizes, flops, law.loss(sizes, law.cost.tokens(flops, sizes)))
    assert found.a == pytest.approx(law.a, abs=1e-3)


def test_a_grid_of_sizes_and_tokens_is_read_between():
    law = BESIROGLU
    sizes, tokens = map(np.ravel, np.meshgrid(np.geomspace(1e8, 1e10, 9), np.geomspace(1e9, 1.1e12, 8)))
    flops = law.cost.flops(sizes, tokens) * (1 + 0.3 * np.log10(sizes))
    found = isoflop(sizes, flops, law.loss(sizes, tokens))
    assert all(one.interpolated for one in found.profiles)
    for one in found.profiles:
        n = np.array(one.sizes)
        exact = law.loss(n, one.flops / (6 * n * (1 + 0.3 * np.log10(n))))
        assert np.allclose(one.losses, exact, rtol=2e-3)
    inside = [one for one in found.profiles if one.inside]
    assert len(inside) >= 2


def test_too_few_sizes_have_no_profile():
    assert isoflop([1e6, 2e6, 1e6, 2e6], [1e15, 1e15, 1e16, 1e16], [3.0, 2.9, 2.5, 2.4]) is None


def test_minima_beyond_the_sizes_do_not_count():
    sizes = [1e6, 2e6, 4e6] * 2
    found = isoflop(sizes, [1e15] * 3 + [1e16] * 3, [3.0, 2.9, 2.85, 2.9, 2.7, 2.6])
    assert not any(one.inside for one in found.profiles)
    assert found.a is None
