import dataclasses

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.quantized_linear import dequantize
from lightning_gpt.quantization.awq import awq_factors, output_error
from lightning_gpt.quantization.folding import fold, folds, give_gains
from lightning_gpt.quantization.grid import round_to_nearest
from lightning_gpt.quantization.smoothquant import smoothing_factors

LLAMA = GPTConfig(
    vocab_size=61,
    block_size=16,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    position="rotary",
    norm="rmsnorm",
    feed_forward="swiglu",
    bias=False,
)
GPT2 = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_embd=32)
ALL = {"attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down"}
UP = {"attention.qkv", "attention.out", "feed_forward.up"}
MOE = MoEConfig(experts=2, top_k=1, shared=1, renormalize=False)
CASES = {
    "llama": (LLAMA, ALL),
    "one value head": (dataclasses.replace(LLAMA, n_kv_head=1, head_dim=12), ALL),
    "a value for each head": (dataclasses.replace(LLAMA, n_kv_head=None), ALL),
    "biases": (dataclasses.replace(LLAMA, bias=True, feed_forward="geglu"), ALL),
    "biases of qkv": (dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True, qk_norm_affine=True), ALL),
    "no gains": (dataclasses.replace(LLAMA, norm_affine=False), ALL),
    "sandwich, caps, sinks": (
        dataclasses.replace(
            LLAMA, norm_place="sandwich", attention_softcap=5.0, attention_sinks=True, input_skip=True, window=5
        ),
        ALL,
    ),
    "gpt2": (GPT2, UP),
    "gpt2 without gains": (dataclasses.replace(GPT2, norm_affine=False), UP),
    "relu": (dataclasses.replace(GPT2, feed_forward="relu"), UP | {"feed_forward.down"}),
    "relu2": (dataclasses.replace(GPT2, feed_forward="relu2"), UP | {"feed_forward.down"}),
    "parallel": (dataclasses.replace(GPT2, parallel_residual=True, position="alibi"), UP),
    "post-norm": (dataclasses.replace(GPT2, norm_place="post"), {"attention.out"}),
    "values of the first layer": (dataclasses.replace(LLAMA, value_skip=True), ALL - {"attention.out"}),
    "experts": (
        dataclasses.replace(LLAMA, moe=MOE),
        {"attention.qkv", "attention.out", "feed_forward.shared.down"},
    ),
}


def random_network(config):
    torch.manual_seed(0)
    net = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


@pytest.mark.parametrize("name", CASES)
def test_folded_factors_leave_the_float_network_as_it_was(name):
    config, expected = CASES[name]
    net = random_network(config)
    ids = torch.randint(61, (2, 16))
    with torch.no_grad():
        before = net(ids)
        give_gains(net)
        for block in net.blocks:
            found = folds(block, net.config)
            assert set(found) == expected
            for layer, how in found.items():
                factors = torch.rand(block.get_submodule(layer).in_features).double() + 0.5
                if how.shared is not None:
                    factors = factors[how.shared]
                old = block.get_submodule(layer).weight.clone()
                fold(block.get_submodule(layer), how, factors)
                assert torch.allclose(block.get_submodule(layer).weight, old * factors)
        after = net(ids)
    assert (after - before).abs().max() < 1e-9 * before.abs().max()


def test_networks_with_new_gains_say_so():
    net = random_network(dataclasses.replace(GPT2, norm_affine=False))
    give_gains(net)
    again = GPT(net.config).double()
    again.load_state_dict(net.state_dict())


X = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor([30.0] * 2 + [1.0] * 30)
W = torch.randn(24, 32, generator=torch.Generator().manual_seed(1)) * 0.1
SHARED = torch.arange(16).repeat(2)


@pytest.mark.parametrize("shared", [None, SHARED])
def test_awq_takes_the_best_of_twenty_exponents(shared):
    hessian, mean = X.T @ X, X.abs().mean(0)
    factors, exponent = awq_factors(W, mean, hessian, 4, 2, shared)
    common = mean if shared is None else (mean[:16] + mean[16:]).repeat(2) / 2
    errors = []
    for step in range(20):
        tried = common ** (step / 20)
        tried = tried / (tried.max() * tried.min()).sqrt()
        values, scale = round_to_nearest(W * tried, 4, 2)
        errors.append(float((((X / tried) @ dequantize(values, scale).T) - X @ W.T).square().sum()))
        if step / 20 == exponent:
            assert torch.allclose(tried, factors)
    assert exponent == errors.index(min(errors)) / 20
    assert exponent > 0
    assert min(errors) < 0.8 * errors[0]


def test_output_error_is_that_of_the_outputs():
    gap = W[:3] * 0.01
    assert output_error(gap, X.T @ X) == pytest.approx(float((X @ gap.T).square().sum()), rel=1e-5)


@pytest.mark.parametrize("shared", [None, SHARED])
def test_smoothing_meets_half_way(shared):
    factors = smoothing_factors(W, X.abs().amax(0), 0.5, shared)
    inputs, weights = (X / factors).abs().amax(0), (W * factors).abs().amax(0)
    if shared is None:
        assert torch.allclose(inputs, weights, rtol=1e-4)
    else:
        assert torch.equal(factors[:16], factors[16:])
        assert torch.allclose(torch.maximum(inputs[:16], inputs[16:]), torch.maximum(weights[:16], weights[16:]))
    assert torch.equal(smoothing_factors(W, torch.zeros(32), 0.5), torch.ones(32))
