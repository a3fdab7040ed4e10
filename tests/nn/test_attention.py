import math

import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.nn import attention, blocked_attention
from lightning_gpt.nn.attention import (
    causal_mask,
    choose_path,
    fused_attention,
    fused_causal_attention,
    plain_attention,
)

B, H, T, D = 2, 4, 9, 8


def inputs(kv_heads: int = H, keys: int = T):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, T, D), (B, kv_heads, keys, D), (B, kv_heads, keys, D))
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_of_plain_and_fused_agree(kv_heads):
    mask = causal_mask(torch.arange(T), T, torch.float64)
    results = []
    for path, given in ((plain_attention, mask), (fused_attention, mask), (fused_causal_attention, None)):
        qkv = inputs(kv_heads)
        y = path(*qkv, given, 0.3, 0.0)
        (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum().backward()
        results.append((y, *(tensor.grad for tensor in qkv)))
    for other in results[1:]:
        for one, two in zip(results[0], other):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tokens", [1, 7, 8, 19])
def test_values_and_gradients_of_plain_and_blocked_agree(kv_heads, tokens, monkeypatch):
    monkeypatch.setattr(blocked_attention, "block_size", lambda tokens: 8)
    mask = causal_mask(torch.arange(tokens), tokens, torch.float64)
    results = []
    for path, given in ((plain_attention, mask), (blocked_attention.blocked_causal_attention, None)):
        generator = torch.Generator().manual_seed(0)
        # As the network's: heads and tokens transposed views.
        q, k, v = (
            torch.randn(B, tokens, heads, D, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_()
            for heads in (H, kv_heads, kv_heads)
        )
        y = path(q, k, v, given, 0.3, 0.0)
        (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum().backward()
        results.append((y, q.grad, k.grad, v.grad))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


def test_the_path_follows_device_type_and_length():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    bf16, fp32 = torch.bfloat16, torch.float32
    blocked = blocked_attention.blocked_causal_attention
    expected = {
        (cpu, bf16, 64, 64, True, False): plain_attention,
        (cpu, bf16, 1024, 1024, True, False): blocked,
        (cpu, bf16, 1024, 1024, True, True): plain_attention,  # dropout
        (cpu, bf16, 1024, 1024, False, False): plain_attention,  # documents
        (cpu, bf16, 1, 1024, False, False): plain_attention,  # one more token
        (cpu, bf16, 4096, 4096, True, False): fused_causal_attention,
        (cpu, fp32, 512, 512, True, False): blocked,
        (cpu, fp32, 512, 512, False, False): fused_attention,
        (cpu, torch.float64, 64, 64, True, False): fused_causal_attention,
        (cuda, bf16, 64, 64, True, False): fused_causal_attention,
    }
    for arguments, path in expected.items():
        assert choose_path(*arguments) is path, arguments


def test_blocked_attention_within_autocast_computes_in_its_type():
    q, k, v = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = blocked_attention.blocked_causal_attention(q, k, v, None, 0.3, 0.0)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert q.grad.dtype == torch.float32
    expected = plain_attention(q, k, v, causal_mask(torch.arange(9), 9, torch.float32), 0.3, 0.0)
    torch.testing.assert_close(y.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_grouped_queries_equal_repeated_keys(kv_heads):
    q, k, v = inputs(kv_heads)
    mask = causal_mask(torch.arange(T), T, torch.float64)
    repeated = (tensor.repeat_interleave(H // kv_heads, dim=1) for tensor in (k, v))
    torch.testing.assert_close(plain_attention(q, k, v, mask, 0.5, 0.0), plain_attention(q, *repeated, mask, 0.5, 0.0))


def test_plain_attention_by_hand():
    q, k, v = inputs()
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)
    mask = causal_mask(torch.arange(T), T, torch.float64)
    torch.testing.assert_close(plain_attention(q, k, v, mask, 1 / math.sqrt(D), 0.0), expected)


def test_masks():
    mask = causal_mask(torch.tensor([[1], [3]]), 5, torch.float32)
    assert mask.shape == (2, 1, 1, 5)
    assert (mask[:, 0, 0] == 0).tolist() == [[True, True, False, False, False], [True, True, True, True, False]]
    documents = torch.tensor([[0, 0, 1, 1]])
    allowed = causal_mask(torch.arange(4), 4, torch.float32, documents)[0, 0] == 0
    assert allowed.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_dropout_drops_weights_of_the_plain_path():
    torch.manual_seed(0)
    q, k, v = inputs()
    v = torch.ones_like(v)
    y = plain_attention(q, k, v, None, 1.0, 0.5)
    assert y.std() > 0.05  # without dropout every entry is exactly 1
    assert y.mean().item() == pytest.approx(1.0, abs=0.2)
    assert (plain_attention(q, k, v, None, 1.0, 0.0) - 1).abs().max() < 1e-12


def test_whole_network_agrees_on_all_paths(monkeypatch):
    from lightning_gpt.nn import GPT, GPTConfig

    torch.manual_seed(0)
    config = GPTConfig(vocab_size=31, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, position="rotary")
    net = GPT(config).double()
    ids = torch.randint(31, (2, 16))
    gradients = []
    for plain, blocked in (({torch.float64: 16}, {}), ({}, {torch.float64: [16]}), ({}, {})):
        monkeypatch.setattr(attention, "CPU_PLAIN_MAX_KEYS", plain)
        monkeypatch.setattr(attention, "CPU_BLOCKED_TOKENS", blocked)
        net.zero_grad()
        F.cross_entropy(net(ids).flatten(0, 1), ids.flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for one, two, three in zip(*gradients):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
