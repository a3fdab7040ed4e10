import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.nn.feedforward import relu_squared


def test_relu_squared_is_the_square_of_relu_with_exact_gradients():
    torch.manual_seed(0)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(relu_squared(x), F.relu(x).square())
    assert torch.autograd.gradcheck(relu_squared, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_autograd_to_the_bit(dtype):
    torch.manual_seed(0)
    x = torch.randn(64, 33).to(dtype)
    upstream, gradients = torch.randn(64, 33).to(dtype), []
    for function in (relu_squared, lambda x: F.relu(x).square()):
        leaf = x.clone().requires_grad_()
        function(leaf).backward(upstream)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
