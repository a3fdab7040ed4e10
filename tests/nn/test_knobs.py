"""Every knob of GPTConfig through a training step, cached = full, ragged generation, counting, saving and loading."""

import math

import pytest
import torch

from lightning_gpt.hub import load_model, save_model
from lightning_gpt.inference.generation import generate
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT, GPTConfig, KVCache
from lightning_gpt.nn.attention_paths import CpuLimits, folded_attention
from lightning_gpt.nn.flops import kv_cache_bytes, parameters
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.rope_scaling import RopeScaling
from lightning_gpt.optim import AdamW
from lightning_gpt.parallel.recompute import recompute

BASE = {"vocab_size": 41, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}
ROTARY = {"position": "rotary"}
KNOBS = {
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal", "embedding_multiplier": math.sqrt(32)},
    "rotary": ROTARY,
    "alibi": {"position": "alibi"},
    "alibi, grouped": {"position": "alibi", "n_kv_head": 2},
    "no position": {"position": "none"},
    "partial rotary": ROTARY | {"rope_fraction": 0.5},
    "linear rope": ROTARY | {"rope_scaling": RopeScaling("linear", 2.0)},
    "ntk rope": ROTARY | {"rope_scaling": RopeScaling("ntk", 2.0)},
    "yarn rope": ROTARY | {"rope_scaling": RopeScaling("yarn", 2.0, 12)},
    "llama3 rope": ROTARY | {"rope_scaling": RopeScaling("llama3", 2.0, 12)},
    "multi-query": {"n_kv_head": 1},
    "grouped": {"n_kv_head": 2},
    "wide heads": {"head_dim": 16},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "window, rotary, grouped": ROTARY | {"window": 7, "n_kv_head": 2},
    "window, alibi": {"window": 7, "position": "alibi"},
    "some windows": ROTARY | {"window": 5, "window_pattern": "SL"},
    "qk norm": {"qk_norm": True},
    "qk norm with gain": {"qk_norm": True, "qk_norm_affine": True},
    "attention scale": {"attention_scale": 1.0},
    "attention softcap": {"attention_softcap": 5.0},
    "sinks": {"attention_sinks": True},
    "sinks, window, grouped": {"attention_sinks": True, "window": 5, "n_kv_head": 2},
    "qkv bias": {"bias": False, "qkv_bias": True},
    "no bias": {"bias": False},
    "relu": {"feed_forward": "relu"},
    "gelu": {"feed_forward": "gelu"},
    "gelu tanh": {"feed_forward": "gelu_tanh"},
    "relu2": {"feed_forward": "relu2"},
    "swiglu": {"feed_forward": "swiglu"},
    "geglu": {"feed_forward": "geglu"},
    "rmsnorm": {"norm": "rmsnorm"},
    "norm without gain": {"norm_affine": False},
    "post-norm": {"norm_place": "post"},
    "sandwich": {"norm_place": "sandwich", "norm": "rmsnorm"},
    "parallel residual": {"parallel_residual": True},
    "residual multiplier": {"residual_multiplier": 0.5},
    "embedding multiplier": {"embedding_multiplier": 3.0},
    "value skip": {"value_skip": True},
    "input skip": {"input_skip": True},
    "untied": {"tie_embeddings": False},
    "padded": {"vocab_multiple": 16},
    "logit softcap": {"logit_softcap": 15.0},
    "experts": {"bias": False, "moe": MoEConfig(experts=4)},
    "experts, gated, shared": {
        "bias": False,
        "feed_forward": "swiglu",
        "moe": MoEConfig(experts=4, top_k=1, shared=1, expert_hidden=16),
    },
    "experts by sigmoid and bias": {
        "bias": False,
        "moe": MoEConfig(experts=4, routing="sigmoid", balance="bias", scale=2.5, dense_first=1),
    },
    "experts in some layers, biases elsewhere": {"moe": MoEConfig(experts=4, every=2, feed_forward="gelu")},
    "zero output": {"initialization": "zero_output", "tie_embeddings": False},
}


@pytest.fixture(params=KNOBS)
def config(request):
    return GPTConfig(**(BASE | KNOBS[request.param]))


@pytest.fixture
def net(config):
    torch.manual_seed(0)
    net = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # gains, mixes and sinks start trivial: make every parameter count
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def ids(*shape):
    return torch.randint(41, shape, generator=torch.Generator().manual_seed(1))


def test_a_training_step_moves_every_parameter(config):
    torch.manual_seed(0)
    net = GPT(config)
    optimizer = AdamW(lr=1e-2, weight_decay=0.0).build(net)
    x = ids(4, 17)
    losses = []
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for _ in range(4):
        total, count = net.loss(x[:, :-1], x[:, 1:])
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    assert losses[0] == pytest.approx(math.log(41), rel=0.25)
    assert losses[-1] < losses[0]
    still = {name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])}
    assert not still


def test_no_token_sees_a_later_one(net):
    x = ids(1, 12)
    changed = x.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 41
    one, two = net(x), net(changed)
    torch.testing.assert_close(one[:, :8], two[:, :8])
    assert not torch.allclose(one[:, 8:], two[:, 8:])


@pytest.mark.parametrize("cuts", [(1,) * 20, (20,), (5, 1, 1, 13), (3, 4, 9, 4)], ids=str)
def test_cached_equals_full(net, cuts):
    x, cache = ids(2, 20), KVCache(net.config, 2, dtype=torch.float64)
    parts = [net(part, cache=cache) for part in x.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), net(x))


def test_ragged_generation_equals_each_row_alone_without_a_cache(net):
    prompts = [ids(1, length)[0].tolist() for length in (3, 11, 6)]
    made = generate(net, prompts, 9, SamplingConfig(temperature=0.0))
    for prompt, new in zip(prompts, made):
        text = list(prompt)
        for _ in range(9):
            text.append(int(net(torch.tensor([text]))[0, -1].argmax()))
        assert new == text[len(prompt) :]


def test_all_paths_agree(net, monkeypatch):
    from lightning_gpt.nn import attention_paths, blocked_attention

    monkeypatch.setattr(blocked_attention, "block_size", lambda tokens: 8)
    x = ids(2, 21)
    results = []
    for plain, blocked in ((24, range(0)), (0, [21]), (0, range(0))):
        limits = CpuLimits({torch.float64: plain}, {torch.float64: blocked}, {torch.float64: 128}, folded_attention)
        monkeypatch.setattr(attention_paths, "CPU_LIMITS", limits)
        results.append(net(x))
        cache = KVCache(net.config, 2, dtype=torch.float64)
        results.append(torch.cat([net(part, cache=cache) for part in x.split((17, 1, 3), dim=1)], dim=1))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)


def test_counted_parameters_and_cache_bytes(net):
    assert sum(p.numel() for p in net.parameters()) == parameters(net.config)
    assert KVCache(net.config, 1, size=20).nbytes == kv_cache_bytes(net.config, 20)


def test_saved_and_loaded(net, tmp_path):
    net = net.float()
    save_model(tmp_path / "model", net, None)
    back, _ = load_model(tmp_path / "model")
    assert back.config == net.config
    torch.testing.assert_close(back(ids(2, 20)), net(ids(2, 20)))


def test_activation_checkpointing_gives_the_same_gradients(net):
    x, gradients = ids(2, 12), []
    net.train()
    for every in (0, 1):
        recompute(net, every)
        net.zero_grad()
        net.loss(x[:, :-1], x[:, 1:])[0].backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two)
