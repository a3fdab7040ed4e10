import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig

SHAPE = {"vocab_size": 257, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
CONFIGS = {
    "gpt2": GPTConfig(**SHAPE),
    "llama": GPTConfig(**SHAPE, n_kv_head=2, position="rotary", norm="rmsnorm", feed_forward="swiglu", bias=False),
}


@pytest.fixture(params=CONFIGS)
def net(request):
    """In float64, and random enough that greedy text does not repeat one token."""
    torch.manual_seed(0)
    network = GPT(CONFIGS[request.param]).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network
