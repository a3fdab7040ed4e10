import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.nn.norms import LayerNorm, RMSNorm, rms_norm


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8), (2, 3, 4, 8)], ids=str)
def test_values_and_gradients_are_pytorchs(shape, gain):
    torch.manual_seed(0)
    results = []
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64) if gain else None
    upstream = torch.randn(shape, dtype=torch.float64)
    for function in (rms_norm, lambda x, weight, eps: F.rms_norm(x, (8,), weight, eps)):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight) if tensor is not None]
        y = function(*(leaves if gain else (*leaves, None)), 1e-2)
        y.backward(upstream)
        results.append((y, *(leaf.grad for leaf in leaves)))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("gain", [False, True])
def test_gradients_are_exact(gain):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True) if gain else None
    assert torch.autograd.gradcheck(rms_norm, (x, weight, 1e-5))


def test_a_row_of_zeros_stays_zero_with_finite_gradients():
    x = torch.zeros(1, 8, requires_grad=True)
    y = rms_norm(x, None, 1e-5)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(1, 8))
    assert torch.isfinite(x.grad).all()


def test_bfloat16_is_normalised_in_float32():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rms_norm(x, None, 1e-5), rms_norm(x.float(), None, 1e-5).bfloat16())


def test_by_hand():
    x = torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(RMSNorm(2, 0.0, True)(x), x / 12.5**0.5)
    torch.testing.assert_close(LayerNorm(2, 0.0, True, True)(x), torch.tensor([[1.0, -1.0]]))
