import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_gpt.nn import GPT, GPTConfig, KVCache, flops

SHAPE = {"vocab_size": 61, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
CONFIGS = [
    GPTConfig(**SHAPE),
    GPTConfig(**SHAPE, bias=False, tie_embeddings=False, vocab_multiple=64),
    GPTConfig(**SHAPE, bias=False, norm="rmsnorm", position="rotary", feed_forward="swiglu", n_kv_head=2),
    GPTConfig(**SHAPE, norm_affine=False, position="none", feed_forward="relu2", head_dim=6, ffn_hidden=50),
    GPTConfig(**SHAPE, norm="rmsnorm", feed_forward="geglu", n_kv_head=1, qk_norm=True),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_counts_equal_a_real_network(config):
    net = GPT(config)
    assert flops.parameters(config) == sum(p.numel() for p in net.parameters())
    body = [p for name, p in net.named_parameters() if not name.startswith(("token_", "position_", "head"))]
    assert flops.body_parameters(config) == sum(p.numel() for p in body)
    assert flops.weight_bytes(config, torch.bfloat16) == sum(p.nbytes for p in net.bfloat16().parameters())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("context", [5, 16])
def test_forward_flops_equal_the_counter_of_torch(config, context):
    net = GPT(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(3, context, dtype=torch.int64))
    assert flops.forward_flops_per_token(config, context) * 3 * context == counter.get_total_flops()
    assert flops.training_flops_per_token(config, context) == 3 * flops.forward_flops_per_token(config, context)


def test_causal_counts_the_lower_triangle():
    config, context = CONFIGS[0], 16
    full, causal = (flops.forward_flops_per_token(config, context, causal) * context for causal in (False, True))
    pairs = context * context - context * (context + 1) // 2
    assert full - causal == 4 * config.n_layer * config.n_embd * pairs


@pytest.mark.parametrize("config", CONFIGS)
def test_cache_bytes_equal_a_real_cache(config):
    cache = KVCache(config, batch=3, size=7, dtype=torch.bfloat16)
    assert flops.kv_cache_bytes_per_token(config, torch.bfloat16) * 3 * 7 == cache.nbytes
