import pytest
import torch

from lightning_gpt.nn.quantized_linear import dequantize
from lightning_gpt.quantization.gptq import gptq
from lightning_gpt.quantization.grid import best_scale, largest_scale, nearest, round_to_nearest

K = 160


@pytest.fixture
def correlated():
    """Inputs of which a few directions are strong, and a matrix, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 24, generator=generator) @ torch.randn(24, K, generator=generator)
    x += 0.3 * torch.randn(500, K, generator=generator)
    return x.double(), (0.1 * torch.randn(12, K, generator=generator)).double()


def optimal_brain_quantizer(weight, hessian, bits, groups, damping, order, scale_of, fixed=None):
    """Section 3.1 of the paper, one column after the other: round it, correct all others by the inverse Hessian, and
    take it out of that by one step of Gaussian elimination."""
    weight, size = weight.clone(), weight.shape[1] // groups
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)).double())
    values, scales = torch.zeros_like(weight), torch.zeros(len(weight), groups).double()
    for j in order:
        if fixed is None and j % size == 0:
            scales[:, j // size] = scale_of(weight[:, j : j + size], bits)[:, 0]
        scale = (scales if fixed is None else fixed)[:, j // size]
        values[:, j] = nearest(weight[:, j : j + 1], scale[:, None], bits)[:, 0].double()
        error = (weight[:, j] - values[:, j] * scale) / inverse[j, j]
        weight -= error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] * inverse[j] / inverse[j, j]
    return values.to(torch.int8), scales if fixed is None else fixed


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("groups", [1, 5, 20])
def test_equals_the_optimal_brain_quantizer_column_by_column(correlated, groups, clip):
    x, weight = correlated
    scale_of = best_scale if clip else largest_scale
    expected = optimal_brain_quantizer(weight, x.T @ x, 4, groups, 0.01, range(K), scale_of)
    values, scale = gptq(weight, x.T @ x, 4, groups, damping=0.01, clip=clip)
    assert torch.equal(values, expected[0])
    assert torch.equal(scale, expected[1])


def test_columns_in_another_order_keep_their_groups(correlated):
    x, weight = correlated
    hessian = x.T @ x
    order = hessian.diagonal().argsort(descending=True).tolist()
    fixed = largest_scale(weight, 4, 5)
    expected = optimal_brain_quantizer(weight, hessian, 4, 5, 0.01, order, None, fixed)
    values, scale = gptq(weight, hessian, 4, 5, damping=0.01, act_order=True)
    assert torch.equal(values, expected[0])
    assert torch.equal(scale, fixed)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_outputs_err_less_than_with_rounding_to_nearest(correlated, bits, act_order):
    x, weight = correlated
    exact = x @ weight.T
    errors = [
        (x @ dequantize(values, scale, torch.float64).T - exact).norm() / exact.norm()
        for values, scale in (round_to_nearest(weight, bits, 5), gptq(weight, x.T @ x, bits, 5, act_order=act_order))
    ]
    assert errors[1] < 0.6 * errors[0]


def test_inputs_that_are_always_zero_get_zero_and_harm_nothing(correlated):
    x, weight = correlated
    x[:, 7] = 0
    weight[:, 7] = 100.0
    values, scale = gptq(weight, x.T @ x, 4, 5)
    assert (values[:, 7] == 0).all()
    assert scale[:, 0].max() < 1


def test_fewer_inputs_than_columns_need_damping_only(correlated):
    x, weight = correlated
    values, scale = gptq(weight, x[:3].T @ x[:3], 4, 5)
    assert torch.isfinite(dequantize(values, scale)).all()


def test_a_broken_hessian_is_refused(correlated):
    x, weight = correlated
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        gptq(weight, x.T @ x, 4)
