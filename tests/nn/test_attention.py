import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.nn import GPT, GPTConfig, attention_paths, blocked_attention
from lightning_gpt.nn.attention_paths import (
    WITH_AMX,
    WITHOUT_AMX,
    CpuLimits,
    choose_path,
    folded_attention,
    fused_attention,
    fused_causal_attention,
    plain_attention,
)
from lightning_gpt.nn.masks import attention_mask
from lightning_gpt.nn.positions import alibi_slopes

B, H, T, D = 2, 4, 9, 8


def causal(tokens: int, dtype=torch.float64, window=None, slopes_H=None):
    position = torch.arange(tokens)
    return attention_mask(position, position, dtype, window, slopes_H)


def inputs(kv_heads: int = H, keys: int = T):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, T, D), (B, kv_heads, keys, D), (B, kv_heads, keys, D))
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_of_plain_and_fused_agree(kv_heads):
    mask = causal(T)
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
@pytest.mark.parametrize("window", [None, 1, 3, 11])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("recompute_from", [1, 100])
def test_values_and_gradients_of_plain_and_blocked_agree(kv_heads, tokens, window, biased, recompute_from, monkeypatch):
    monkeypatch.setattr(blocked_attention, "block_size", lambda tokens: 8)
    monkeypatch.setattr(blocked_attention, "RECOMPUTE_FROM", recompute_from)
    slopes_H = alibi_slopes(H) if biased else None
    mask = causal(tokens, window=window, slopes_H=slopes_H)
    blocked = partial(blocked_attention.blocked_causal_attention, window=window, slopes_H=slopes_H)
    results = []
    for path, given in ((plain_attention, mask), (blocked, None)):
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


def test_the_path_follows_device_type_and_length(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    bf16, fp32 = torch.bfloat16, torch.float32
    blocked = blocked_attention.blocked_causal_attention
    without_amx = {
        (cpu, bf16, 1024, 1024, True, False): blocked,
        (cpu, bf16, 1024, 1024, True, True): plain_attention,  # dropout
        (cpu, bf16, 256, 256, True, False, 64): blocked,  # a window
        (cpu, bf16, 1024, 1024, False, False): plain_attention,  # documents
        (cpu, bf16, 1, 1024, False, False): plain_attention,  # one more token
        (cpu, bf16, 1, 8192, False, False): plain_attention,  # one more token of a long text
        (cpu, fp32, 16, 8192, False, False): plain_attention,
    }
    with_amx = {
        (cpu, bf16, 512, 512, True, False): plain_attention,
        (cpu, bf16, 1024, 1024, True, False): fused_causal_attention,
        (cpu, bf16, 1024, 1024, False, False): fused_attention,  # documents
        (cpu, bf16, 1, 8192, False, False): folded_attention,
        (cpu, bf16, 256, 256, True, False, 64): plain_attention,  # a window
        (cpu, bf16, 1024, 1024, True, False, 256): blocked,
        (cpu, fp32, 16, 8192, False, False): folded_attention,
    }
    anywhere = {
        (cpu, bf16, 64, 64, True, False): plain_attention,
        (cpu, fp32, 8, 8, True, False): plain_attention,
        (cpu, fp32, 17, 8192, False, False): fused_attention,
        (cpu, bf16, 4096, 4096, True, False): fused_causal_attention,
        (cpu, fp32, 512, 512, True, False): blocked,
        (cpu, fp32, 512, 512, False, False): fused_attention,
        (cpu, torch.float64, 64, 64, True, False): fused_causal_attention,
        (cuda, bf16, 64, 64, True, False): fused_causal_attention,
        (cuda, bf16, 64, 64, True, False, 16): fused_attention,  # a window
        (cuda, bf16, 64, 64, True, False, None, True): fused_attention,  # a bias by distance
        (cuda, bf16, 64, 64, True, False, None, False, False, True): plain_attention,  # softcap
        (cuda, bf16, 64, 64, True, False, None, False, False, False, True): plain_attention,  # sinks
        (cpu, bf16, 8192, 8192, True, False, 256): blocked,
    }
    for limits, expected in ((WITHOUT_AMX, without_amx), (WITH_AMX, with_amx)):
        monkeypatch.setattr(attention_paths, "CPU_LIMITS", limits)
        for arguments, path in (expected | anywhere).items():
            assert choose_path(*arguments) is path, arguments


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("slopes", [False, True], ids=["", "alibi"])
def test_folded_queries_of_a_few_tokens_equal_plain_attention(kv_heads, slopes):
    q, k, v = inputs(kv_heads)
    q, positions = q[:, :, -3:], torch.arange(T)
    slopes_H = alibi_slopes(H).double() if slopes else None
    for given in (None, attention_mask(positions[-3:], positions, torch.float64, 4, slopes_H)):
        torch.testing.assert_close(
            folded_attention(q, k, v, given, 0.3, 0.0), plain_attention(q, k, v, given, 0.3, 0.0)
        )
    ragged = attention_mask(positions[None, -3:].expand(len(q), 3), positions, torch.float64, None, slopes_H)
    torch.testing.assert_close(folded_attention(q, k, v, ragged, 0.3, 0.0), plain_attention(q, k, v, ragged, 0.3, 0.0))


def test_blocked_attention_within_autocast_computes_in_its_type():
    q, k, v = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = blocked_attention.blocked_causal_attention(q, k, v, None, 0.3, 0.0)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert q.grad.dtype == torch.float32
    expected = plain_attention(q, k, v, causal(9, torch.float32), 0.3, 0.0)
    torch.testing.assert_close(y.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_grouped_queries_equal_repeated_keys(kv_heads):
    q, k, v = inputs(kv_heads)
    mask = causal(T)
    repeated = (tensor.repeat_interleave(H // kv_heads, dim=1) for tensor in (k, v))
    torch.testing.assert_close(plain_attention(q, k, v, mask, 0.5, 0.0), plain_attention(q, *repeated, mask, 0.5, 0.0))


def test_plain_attention_by_hand():
    q, k, v = inputs()
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)
    mask = causal(T)
    torch.testing.assert_close(plain_attention(q, k, v, mask, 1 / math.sqrt(D), 0.0), expected)


def test_masks():
    five = torch.arange(5)
    mask = attention_mask(torch.tensor([[1], [3]]), five, torch.float32)
    assert mask.shape == (2, 1, 1, 5)
    assert (mask[:, 0, 0] == 0).tolist() == [[True, True, False, False, False], [True, True, True, True, False]]
    documents = torch.tensor([[0, 0, 1, 1]])
    four = torch.arange(4)
    allowed = attention_mask(four, four, torch.float32, document_ids=documents)[0, 0] == 0
    assert allowed.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    allowed = attention_mask(four, four, torch.float32, window=2) == 0
    assert allowed.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    allowed = attention_mask(torch.tensor([5]), torch.tensor([4, 5, -2, 3]), torch.float32, window=2) == 0
    assert allowed.int().tolist() == [[1, 1, 0, 0]]


def test_alibi_by_hand():
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    twelve = alibi_slopes(12)  # as the paper's reference: 8 slopes, then every second one of 16
    assert twelve[:8].tolist() == [2.0**-n for n in range(1, 9)]
    assert twelve[8:].tolist() == pytest.approx([2 ** (-0.5 * n) for n in (1, 3, 5, 7)])
    mask = causal(3, slopes_H=torch.tensor([0.5, 0.25]))
    inf = math.inf
    assert mask.tolist() == [
        [[0, -inf, -inf], [-0.5, 0, -inf], [-1, -0.5, 0]],
        [[0, -inf, -inf], [-0.25, 0, -inf], [-0.5, -0.25, 0]],
    ]


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_softcap_and_sinks_by_hand(kv_heads):
    q, k, v = inputs(kv_heads)
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    y = plain_attention(q, k, v, causal(T), 0.5, 0.0, softcap=1.5, sinks_H=sinks)
    k, v = (tensor.repeat_interleave(H // kv_heads, dim=1) for tensor in (k, v))
    scores = 1.5 * torch.tanh(torch.einsum("bhtd,bhsd->bhts", q, k) * 0.5 / 1.5)
    grown = torch.where(torch.ones(T, T).triu(1).bool(), 0.0, scores.exp())
    weights = grown / (grown.sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    torch.testing.assert_close(y, torch.einsum("bhts,bhsd->bhtd", weights, v))


def test_dropout_drops_weights_of_the_plain_path():
    torch.manual_seed(0)
    q, k, v = inputs()
    v = torch.ones_like(v)
    y = plain_attention(q, k, v, None, 1.0, 0.5)
    assert y.std() > 0.05  # without dropout every entry is exactly 1
    assert y.mean().item() == pytest.approx(1.0, abs=0.2)
    assert (plain_attention(q, k, v, None, 1.0, 0.0) - 1).abs().max() < 1e-12


def test_whole_network_agrees_on_all_paths(monkeypatch):
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=31, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, position="rotary")
    net = GPT(config).double()
    ids = torch.randint(31, (2, 16))
    gradients = []
    for plain, blocked in ((16, range(0)), (0, [16]), (0, range(0))):
        limits = CpuLimits({torch.float64: plain}, {torch.float64: blocked}, {torch.float64: 128}, folded_attention)
        monkeypatch.setattr(attention_paths, "CPU_LIMITS", limits)
        net.zero_grad()
        F.cross_entropy(net(ids).flatten(0, 1), ids.flatten()).backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for one, two, three in zip(*gradients):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
