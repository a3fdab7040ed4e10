import math

import pytest
import torch

from lightning_gpt.optim.noise_scale import noise_scale


def square_norms(gradients_SBD: torch.Tensor, small: int) -> tuple[list[float], list[float]]:
    """Of S steps with B examples each: means over parts of `small` examples, and of the whole."""
    parts = gradients_SBD.unflatten(1, (-1, small)).mean(2)
    return parts.square().sum(-1).mean(1).tolist(), gradients_SBD.mean(1).square().sum(-1).tolist()


@pytest.mark.parametrize("small, large", [(1, 16), (4, 16), (8, 32)])
def test_gradients_of_known_signal_and_noise(small, large):
    """Examples scatter around a gradient of squared norm 4 with a covariance of trace 200: the scale is 50."""
    generator = torch.Generator().manual_seed(1)
    signal = torch.zeros(50)
    signal[:4] = 1.0
    spread = torch.cat([torch.full((25,), 7.0**0.5), torch.ones(25)])  # 25 * 7 + 25 * 1 = 200
    gradients = signal + spread * torch.randn(2_000, large, 50, generator=generator)
    found = noise_scale(small, large, *square_norms(gradients, small))
    assert found.signal == pytest.approx(4, abs=0.3)
    assert found.noise == pytest.approx(200, rel=0.03)
    assert abs(found.scale - 50) < 4 * found.error and found.error < 4


def test_least_squares_has_the_scale_that_follows_on_paper():
    """y = x.w* + s e, x and e standard normal: an example's gradient is x (x.d) - s e x with d = w - w*, its mean d,
    the trace of its covariance |d|^2 (n + 1) + s^2 n. So the scale is n + 1 + n s^2 / |d|^2."""
    n, s = 20, 1.5
    generator = torch.Generator().manual_seed(2)
    w = torch.full((n,), 0.5)  # w* = 0, so |d|^2 = 5
    small, large = [], []
    for _ in range(1_500):
        x_BN = torch.randn(64, n, generator=generator)
        y_B = s * torch.randn(64, generator=generator)
        parts = []
        for x, y in zip(x_BN.split(8), y_B.split(8)):
            weights = w.clone().requires_grad_()
            (0.5 * (x @ weights - y).square().mean()).backward()
            parts.append(weights.grad)
        small.append(float(torch.stack(parts).square().sum(1).mean()))
        large.append(float(torch.stack(parts).mean(0).square().sum()))
    found = noise_scale(8, 64, small, large)
    expected = n + 1 + n * s**2 / 5
    assert found.signal == pytest.approx(5, rel=0.03)
    assert abs(found.scale - expected) < 4 * found.error and found.error < 0.05 * expected


def test_the_error_is_that_of_repeated_measurements():
    generator = torch.Generator().manual_seed(3)
    gradients = 1 + 5 * torch.randn(200, 100, 8, 10, generator=generator)  # two hundred measurements of a hundred steps
    found = [noise_scale(1, 8, *square_norms(one, 1)) for one in gradients]
    scales = torch.tensor([one.scale for one in found], dtype=torch.float64)
    told = sorted(one.error for one in found)[100]
    assert told == pytest.approx(float(scales.std()), rel=0.25)


def test_pure_noise_has_no_end():
    generator = torch.Generator().manual_seed(4)
    found = noise_scale(1, 4, *square_norms(torch.randn(3, 4, 10, generator=generator) * 10, 1))
    assert (found.signal > 0) or (math.isinf(found.scale) and math.isinf(found.error))
    without = noise_scale(1, 4, [40.0, 40.0], [10.0, 10.0])
    assert without.signal == 0 and math.isinf(without.scale) and math.isinf(without.error)


def test_mistakes():
    with pytest.raises(ValueError, match="small=4 and large=4 must be"):
        noise_scale(4, 4, [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="at least two steps"):
        noise_scale(1, 4, [1.0], [1.0])
    with pytest.raises(ValueError, match="at least two steps"):
        noise_scale(1, 4, [1.0, 2.0], [1.0])
