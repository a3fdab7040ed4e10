import pytest
import torch

from lightning_gpt.optim.newton_schulz import newton_schulz, newton_schulz_batched, product_dtype

SHAPES = [(16, 16), (48, 16), (16, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_batched_equals_one_by_one(shape, dtype, tolerance):
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([newton_schulz(matrix, dtype=dtype) for matrix in matrices])
    actual = newton_schulz_batched(matrices, dtype=dtype)
    assert actual.dtype == expected.dtype == dtype
    # In bf16 the twins round at different places, and the iteration amplifies small singular values.
    assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_singular_vectors_and_evens_singular_values(shape):
    rows, cols = shape
    generator = torch.Generator().manual_seed(0)
    rank = min(rows, cols)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(cols, rank, generator=generator)).Q
    singular = torch.logspace(-2, 0, rank)
    result = newton_schulz(u @ torch.diag(singular) @ v.T, dtype=torch.float32)
    in_basis = u.T @ result @ v
    even = in_basis.diagonal()
    assert even.min() > 0.6 and even.max() < 1.3
    torch.testing.assert_close(in_basis, torch.diag(even), atol=1e-4, rtol=0)


def test_scale_of_the_gradient_does_not_matter():
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    small, large = (newton_schulz(factor * matrix, dtype=torch.float32) for factor in (1e-3, 1e3))
    torch.testing.assert_close(small, large, atol=1e-3, rtol=1e-3)


def test_zero_gradient_gives_zero_update():
    assert newton_schulz_batched(torch.zeros(2, 4, 6)).abs().max() == 0


def test_precision_by_name():
    cpu = torch.device("cpu")
    assert product_dtype(cpu, "bf16") == torch.bfloat16
    assert product_dtype(cpu, "fp32") == torch.float32
    assert product_dtype(torch.device("cuda"), "auto") == torch.bfloat16
