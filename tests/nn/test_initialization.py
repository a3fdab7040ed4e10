import math

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig

SHAPE = {"vocab_size": 500, "block_size": 200, "n_layer": 3, "n_head": 4, "n_embd": 128}


def spread(parameter) -> float:
    return parameter.detach().std().item()


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(tied):
    torch.manual_seed(0)
    net = GPT(GPTConfig(**SHAPE, init_std=0.05, tie_embeddings=tied))
    block = net.blocks[1]
    for layer in (net.token_embedding, net.position_embedding, net.head, block.attention.qkv, block.feed_forward.up):
        assert spread(layer.weight) == pytest.approx(0.05, rel=0.05)
    for layer in (block.attention.out, block.feed_forward.down):
        assert spread(layer.weight) == pytest.approx(0.05 / math.sqrt(6), rel=0.05)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward", ["relu2", "swiglu"])
def test_zero_output(tied, feed_forward):
    torch.manual_seed(0)
    config = GPTConfig(**SHAPE, initialization="zero_output", tie_embeddings=tied, feed_forward=feed_forward)
    net = GPT(config)
    block = net.blocks[1]
    assert spread(net.token_embedding.weight) == pytest.approx(config.init_std if tied else 1.0, rel=0.05)
    assert spread(net.position_embedding.weight) == pytest.approx(config.init_std, rel=0.05)
    up = block.feed_forward.gate_up if feed_forward == "swiglu" else block.feed_forward.up
    for weight in (block.attention.qkv.weight, up.weight):
        assert spread(weight) == pytest.approx(1 / math.sqrt(128), rel=0.05)
        assert weight.abs().max() <= math.sqrt(3 / 128)
    assert (block.attention.out.weight == 0).all()
    assert (block.feed_forward.down.weight == 0).all()
    ids = torch.randint(500, (2, 50))
    torch.testing.assert_close(
        net.hidden(ids), net.final_norm(net.token_embedding(ids) + net.position_embedding.weight[:50])
    )
    if not tied:
        total, count = net.loss(ids, ids)
        assert (total / count).item() == pytest.approx(math.log(500), rel=1e-5)
