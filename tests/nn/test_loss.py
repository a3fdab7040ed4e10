import pytest
import torch

from lightning_gpt.nn import loss
from lightning_gpt.nn.loss import (
    IGNORE_INDEX,
    chunked_linear_cross_entropy,
    linear_cross_entropy,
    plain_linear_cross_entropy,
)

N, C, V, ROWS = 37, 16, 50, 64


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(ROWS, C, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORE_INDEX
    return hidden, weight, targets


def gradients(form, hidden, weight, targets, **options):
    total, count = form(hidden, weight, targets, V, **options)
    grads = torch.autograd.grad(total / count, (hidden, weight))
    return total.detach(), count, *grads


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
def test_chunked_equals_plain(softcap, chunk):
    plain = gradients(plain_linear_cross_entropy, *inputs(), softcap=softcap)
    chunked = gradients(chunked_linear_cross_entropy, *inputs(), softcap=softcap, chunk=chunk)
    for one, two in zip(plain, chunked):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert (chunked[3][V:] == 0).all()  # rows of the padded vocabulary take no part


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bfloat16_is_as_near_to_the_truth_as_the_plain_form(softcap):
    hidden, weight, targets = inputs(torch.bfloat16)
    exact = gradients(
        plain_linear_cross_entropy,
        hidden.detach().double().requires_grad_(),
        weight.detach().double().requires_grad_(),
        targets,
        softcap=softcap,
    )
    chunked = gradients(chunked_linear_cross_entropy, hidden, weight, targets, softcap=softcap, chunk=8)
    assert chunked[0].item() == pytest.approx(exact[0].item(), rel=5e-3)
    for one, two in zip(exact[2:], chunked[2:]):
        assert (one - two.double()).norm() / one.norm() < 1e-2


def test_autocast_gives_gradients_in_the_parameters_type():
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        total, _, grad_hidden, grad_weight = gradients(chunked_linear_cross_entropy, hidden, weight, targets, chunk=8)
    plain = gradients(plain_linear_cross_entropy, hidden, weight, targets)
    assert grad_hidden.dtype == grad_weight.dtype == torch.float32
    assert total.item() == pytest.approx(plain[0].item(), rel=5e-3)
    for one, two in zip(plain[2:], (grad_hidden, grad_weight)):
        assert (one - two).norm() / one.norm() < 1e-2


@pytest.mark.parametrize("form", [plain_linear_cross_entropy, chunked_linear_cross_entropy])
def test_everything_ignored_is_zero_with_zero_gradients(form):
    hidden, weight, targets = inputs()
    total, count = form(hidden, weight, torch.full_like(targets, IGNORE_INDEX), V)
    total.backward()
    assert total.item() == 0
    assert count.item() == 0
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


def test_no_gradient_is_made_when_none_is_wanted():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        total, _ = chunked_linear_cross_entropy(hidden, weight, targets, V, chunk=8)
    assert not total.requires_grad
    expected, _ = plain_linear_cross_entropy(hidden, weight, targets, V)
    torch.testing.assert_close(total, expected.detach())


def test_large_vocabularies_take_the_lean_form(monkeypatch):
    hidden, weight, targets = inputs()
    monkeypatch.setattr(loss, "PLAIN_MAX_LOGITS", 0)
    total, _ = linear_cross_entropy(hidden, weight, targets, V)
    assert type(total.grad_fn).__name__ == "_ChunkedLinearCrossEntropyBackward"


def peak_bytes(form) -> int:
    """The most that is allocated at once during loss and backward, as the allocator reports it."""
    from torch.profiler import ProfilerActivity, profile

    hidden = torch.randn(2048, 32, requires_grad=True)
    weight = torch.randn(8192, 32, requires_grad=True)
    targets = torch.randint(8192, (2048,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        form(hidden, weight, targets, 8192)[0].backward()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_peak_memory_is_under_half_of_the_naive(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 1 << 21)  # as many chunks here as 16k tokens of 50k ids have
    naive, lean = peak_bytes(plain_linear_cross_entropy), peak_bytes(chunked_linear_cross_entropy)
    assert naive > 2048 * 8192 * 4
    assert lean < naive / 2


def test_a_compiler_does_not_unroll_the_chunks(monkeypatch):
    sizes = []

    def remember(graph, _inputs):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(loss, "PLAIN_MAX_LOGITS", 1)
    for tokens_of_chunk in (37, 2):
        torch.compiler.reset()
        monkeypatch.setattr(loss, "CHUNK_LOGITS", tokens_of_chunk * V)
        hidden, weight, targets = inputs()
        compiled = torch.compile(lambda *given: linear_cross_entropy(given[0] * 1.0, *given[1:], V), backend=remember)
        total, _ = compiled(hidden, weight, targets)
        torch.testing.assert_close(total, plain_linear_cross_entropy(hidden, weight, targets, V)[0])
    half = len(sizes) // 2
    assert sizes[:half] == sizes[half:]


def test_compiled_rows_equal_plain_ones():
    written_out, compiled = (
        gradients(chunked_linear_cross_entropy, *inputs(), softcap=3.0, chunk=8, fused=fused) for fused in (False, True)
    )
    for one, two in zip(written_out, compiled):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
