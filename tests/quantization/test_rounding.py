import pytest
import torch

from lightning_gpt.nn.quantized_linear import dequantize
from lightning_gpt.quantization.grid import best_scale, largest_scale, nearest, round_to_nearest

W = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_step_at_most(bits, groups):
    values, scale = round_to_nearest(W, bits, groups)
    assert values.dtype == torch.int8
    assert scale.shape == (16, groups)
    step = scale.repeat_interleave(64 // groups, dim=1)
    error = (dequantize(values, scale) - W).abs()
    # Scales are rounded to 8 bits, so the largest number of a group may lie 2^-9 of it beyond the last step.
    assert (error <= step / 2 + step * (2 ** (bits - 1)) * 2**-9).all()
    assert values.abs().max() == 2 ** (bits - 1) - 1


def test_scales_are_those_of_the_largest_number_and_bfloat16_holds_them():
    scale = largest_scale(torch.tensor([[7.0, -14.0, 0.0, 0.0]]), bits=4, groups=2)
    assert scale[0, 0] == 2.0
    assert scale[0, 1] > 0  # zeros have some scale
    scale = largest_scale(W, 8)
    assert torch.equal(scale, scale.bfloat16().float())
    assert torch.allclose(scale[:, 0], W.abs().amax(1) / 127, rtol=2**-8)


def test_numbers_on_the_grid_stay_what_they_are():
    values, scale = round_to_nearest(W, 4, 4)
    again, same = round_to_nearest(dequantize(values, scale), 4, 4)
    assert torch.equal(again, values)
    assert torch.equal(same, scale)


def test_clipping_lessens_the_squared_error_of_every_group():
    heavy = W.clone()
    heavy[:, ::16] *= 8  # one outlier in each group
    plain, clipped = (round_to_nearest(heavy, 4, 4, clip=clip) for clip in (False, True))
    errors = [(dequantize(*each) - heavy).unflatten(1, (4, 16)).square().sum(-1) for each in (plain, clipped)]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.9 * errors[0].sum()


def test_the_searched_scale_is_the_best_of_all_that_are_tried():
    scale = best_scale(W[:1], 4)
    errors = {}
    for step in range(20):
        tried = (largest_scale(W[:1], 4) * (1 - step / 40)).bfloat16().float()
        errors[float(tried)] = float((dequantize(nearest(W[:1], tried, 4), tried) - W[:1]).square().sum())
    assert float(scale) == min(errors, key=errors.get)


def test_clipping_by_outputs_counts_large_inputs():
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    x[:, 3] *= 50
    weight = W.clone()
    weight[:, 3] = 0.02
    weight[:, 4] = 1.0  # large, but of a small input
    hessian = x.T @ x
    by_weights, by_outputs = (best_scale(weight, 4, 1, h) for h in (None, hessian))
    errors = [(x @ (dequantize(nearest(weight, s, 4), s) - weight).T).norm() for s in (by_weights, by_outputs)]
    assert errors[1] < errors[0]
