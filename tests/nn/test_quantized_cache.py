"""Caches in int8 and int4: what is stored, and what the network makes of it."""

import pytest
import torch

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.one_by_one import decode, prefill
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runner import StepInput, TorchRunner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT, GPTConfig, KVCache
from lightning_gpt.nn.attention_paths import plain_attention
from lightning_gpt.nn.caches import block_cache, cache_type, slot_cache
from lightning_gpt.nn.flops import kv_cache_bytes, kv_cache_bytes_per_token
from lightning_gpt.nn.paged_cache import Span
from lightning_gpt.nn.quantized_cache import CacheCode, QuantizedKVCache

BASE = {"vocab_size": 61, "block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 32}
NETWORKS = {
    "gpt2": {},
    "llama": {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 2, "bias": False},
    "alibi": {"position": "alibi"},
    "window": {"position": "rotary", "window": 5},
    "mixed windows": {"position": "rotary", "window": 6, "window_pattern": "SSL"},
    "gemma": {"position": "rotary", "attention_softcap": 3.0, "logit_softcap": 5.0, "norm_place": "sandwich"},
    "sinks": {"position": "rotary", "attention_sinks": True, "n_kv_head": 1},
}
KINDS = ("int8", "int4")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def network(**settings) -> GPT:
    """A small network with weights far from zero."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**BASE, **settings})).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return net


class RoundingCache(KVCache):
    """The readable twin: numbers are rounded and kept as float32."""

    def __init__(self, config: GPTConfig, batch: int, kind: str) -> None:
        super().__init__(config, batch)
        self.code = CacheCode(kind, config.head_size)

    def update(self, layer, key_BHTD, value_BHTD, positions):
        """As KVCache."""
        rounded = (self.code.dequantize(*self.code.quantize(new)) for new in (key_BHTD, value_BHTD))
        return super().update(layer, *rounded, positions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [8, 24, 64, 80])
def test_a_number_is_off_by_at_most_half_a_step(kind, width):
    code = CacheCode(kind, width)
    numbers = torch.randn(5, 3, width) * torch.logspace(-6, 4, 5)[:, None, None]
    stored, scales = code.quantize(numbers)
    assert stored.shape == (5, 3, code.width) and scales.shape == code.scale_shape(5, 3)
    steps = scales.view(5, 3, -1).repeat_interleave(code.group, -1)
    assert ((code.dequantize(stored, scales) - numbers).abs() <= steps * 0.50001).all()
    largest = numbers.unflatten(-1, (-1, code.group)).abs().amax(-1)
    torch.testing.assert_close(scales.view_as(largest), largest / code.largest)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_that_of_torch(kind):
    code, numbers = CacheCode(kind, 32), torch.randn(50, 32)
    scales = numbers.abs().amax(-1) / code.largest
    expected = torch.fake_quantize_per_channel_affine(
        numbers, scales, torch.zeros(50, dtype=torch.int32), 0, -code.largest, code.largest
    )
    torch.testing.assert_close(code.dequantize(*code.quantize(numbers)), expected)


def test_layout_of_four_bits():
    stored, scales = CacheCode("int4", 4).quantize(torch.tensor([[-7.0, 7.0, 3.0, -1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert stored.tolist() == [[1 | 15 << 4, 11 | 7 << 4], [8 | 8 << 4, 8 | 8 << 4]]
    assert scales.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_slots_equal_the_readable_twin(settings, kind):
    """Ragged prompts, one token at a time, rows that leave, several tokens at once."""
    net, config = network(**settings), GPTConfig(**{**BASE, **settings})
    prompts = [torch.randint(61, (n,)).tolist() for n in (13, 4, 9)]
    logits = []
    for cache in (QuantizedKVCache(config, 3, kind=kind), RoundingCache(config, 3, kind)):
        lengths = torch.tensor([13, 4, 9])
        found = [prefill(net, prompts, cache)]
        for token in range(3):
            found.append(decode(net, torch.tensor([token, 7, 9]), cache, lengths + token))
        cache.select(torch.tensor([2, 0]))
        found.append(decode(net, torch.tensor([5, 6]), cache, torch.tensor([12, 16])))
        positions = torch.tensor([[13, 14], [17, 18]])
        found.append(net(torch.tensor([[1, 2], [3, 4]]), positions, cache)[:, -1])
        logits.append(torch.cat(found))
    torch.testing.assert_close(*logits, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_blocks_equal_slots(settings, kind):
    net = network(**settings)
    runner = TorchRunner(net)
    cache = runner.make_cache(blocks=12, block_size=4, dtype=kind)
    texts = [torch.randint(61, (n,)).tolist() for n in (19, 7)]
    blocks, done = [[3, 9, 1, 10, 5], [0, 2]], [0, 0]
    for counts in [(5, 1), (1, 1), (6, 0), (1, 4), (0, 1), (6, 0)]:
        tokens, spans, wanted, expected = [], [], [], []
        for row, count in enumerate(counts):
            if count:
                spans.append(Span(len(tokens), count, done[row], blocks[row]))
                tokens += texts[row][done[row] : done[row] + count]
                done[row] += count
                wanted.append(len(tokens) - 1)
                slots = slot_cache(net.config, 1, None, kind)
                expected.append(net(torch.tensor([texts[row][: done[row]]]), cache=slots)[0, -1])
        torch.testing.assert_close(
            runner.forward(StepInput(tokens, spans, wanted), cache), torch.stack(expected), **CLOSE
        )
    assert done == [19, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_off_by_no_more_than_rounding_can_make_it(kind):
    """|y' - y| <= (e^(2 d) - 1) max|v| + half a step of v, d = what a score can be off by: |q|_1 x half a step of k."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 1, 64), torch.randn(2, 4, 100, 64), torch.randn(2, 4, 100, 64)
    code = CacheCode(kind, 64)
    exact = plain_attention(q, k, v, None, 0.125, 0.0)
    (rounded_k, k_scales), (rounded_v, v_scales) = code.quantize(k), code.quantize(v)
    found = plain_attention(
        q, code.dequantize(rounded_k, k_scales), code.dequantize(rounded_v, v_scales), None, 0.125, 0
    )
    off_score = 0.125 * q.abs().sum(-1).max() * k_scales.max() / 2
    bound = torch.expm1(2 * off_score) * v.abs().max() + v_scales.max() / 2
    assert (found - exact).abs().max() <= bound
    relative = ((found - exact).norm() / exact.norm()).item()
    assert relative < {"int8": 0.015, "int4": 0.2}[kind]


@pytest.mark.parametrize("kind, most", [("int8", 0.01), ("int4", 0.15)])
def test_logits_are_near_those_without_a_cache(kind, most):
    net = network(**NETWORKS["llama"])
    ids = torch.randint(61, (2, 40))
    exact, found = net(ids), net(ids, cache=slot_cache(net.config, 2, None, kind))
    assert 0 < (found - exact).norm() / exact.norm() < most


@pytest.mark.parametrize(
    "kind, head", [(torch.float32, 256), (torch.bfloat16, 128), ("int8", 64 + 4), ("int4", 32 + 2 * 4)]
)
def test_bytes(kind, head):
    config = GPTConfig(vocab_size=61, block_size=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=256, window=16)
    assert kv_cache_bytes_per_token(config, kind) == 2 * 3 * 2 * head
    assert slot_cache(config, 5, 40, kind).nbytes == 5 * kv_cache_bytes(config, 40, kind) == 5 * 2 * 3 * 16 * 2 * head
    assert block_cache(config, 7, 16, kind).nbytes == 7 * 16 * kv_cache_bytes_per_token(config, kind)


def test_bfloat16_keys_come_out_as_float32():
    config = GPTConfig(**BASE)
    cache = slot_cache(config, 1, None, "int8")
    cache.reserve(0, 3)
    key, value = cache.update(0, *torch.randn(2, 1, 4, 3, 8, dtype=torch.bfloat16), slice(0, 3))
    assert key.dtype == value.dtype == cache.dtype == torch.float32


def test_bad_input():
    with pytest.raises(ValueError, match="cache type 'int5' is unknown: use int8, int4, float32, bfloat16"):
        cache_type("int5")
    with pytest.raises(ValueError, match="head_size=9 is odd: use int8"):
        slot_cache(GPTConfig(vocab_size=61, n_head=2, n_embd=18), 1, None, "int4")
    with pytest.raises(ValueError, match="blocks=0"):
        block_cache(GPTConfig(**BASE), 0, 16, "int8")
    assert cache_type("bfloat16") == torch.bfloat16 and cache_type("int4") == "int4"


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_generates_what_slots_would(kind):
    net = network(**NETWORKS["llama"])
    prompts = [torch.randint(61, (n,)).tolist() for n in (5, 17, 9)]
    engine = Engine(TorchRunner(net), config=EngineConfig(max_running=2, token_budget=7, cache_dtype=kind))
    greedy = SamplingConfig(temperature=0)
    found = engine.complete([Request(prompt, 12, greedy) for prompt in prompts])
    assert engine.cache.nbytes == engine.cache.blocks * 16 * kv_cache_bytes_per_token(net.config, kind)
    for prompt, completion in zip(prompts, found):
        cache = slot_cache(net.config, 1, None, kind)
        tokens = [int(prefill(net, [prompt], cache).argmax())]
        while len(tokens) < 12:
            tokens.append(int(decode(net, torch.tensor(tokens[-1:]), cache).argmax()))
        assert completion.tokens == tokens
