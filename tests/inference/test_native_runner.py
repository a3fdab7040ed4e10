"""The C++ runner against TorchRunner, its readable twin."""

import pytest
import torch
from test_steps import NETWORKS, network
from test_steps import run_plan as run_blocks

from lightning_gpt.inference.kernels.library import load_library
from lightning_gpt.inference.native_runner import NativeRunner, why_not
from lightning_gpt.inference.runner import StepInput, TorchRunner
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.paged_cache import Span
from lightning_gpt.nn.quantized_linear import QuantizedLinear

MORE = {
    "post": {"norm_place": "post"},
    "parallel": {"parallel_residual": True, "position": "rotary", "rope_fraction": 0.5, "feed_forward": "gelu"},
    "modern": {
        **{"position": "rotary", "norm": "rmsnorm", "norm_affine": False, "qk_norm": True, "bias": False},
        **{"feed_forward": "relu2", "value_skip": True, "input_skip": True},
    },
    "qwen": {
        **{"position": "rotary", "norm": "rmsnorm", "qk_norm": True, "qk_norm_affine": True, "qkv_bias": True},
        **{"bias": False, "feed_forward": "geglu", "n_kv_head": 2, "tie_embeddings": False},
        **{"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    },
    "uneven": {"n_head": 2, "n_embd": 80, "head_dim": 48, "n_kv_head": 1, "vocab_size": 200, "feed_forward": "relu"},
    "sinusoidal": {"position": "sinusoidal", "ffn_hidden": 112},
    "wide": {"n_embd": 128, "n_head": 2, "n_kv_head": 1, "position": "rotary", "window": 6, "attention_sinks": True},
    "wider": {"n_embd": 64, "n_head": 3, "n_kv_head": 1, "head_dim": 96, "position": "alibi", "attention_softcap": 2.0},
}
ALL = {name: {"n_embd": 64} | settings for name, settings in (NETWORKS | MORE).items()}


@pytest.fixture(autouse=True, scope="module")
def _compiler():
    if load_library() is None:
        pytest.skip("needs g++ on Linux (x86-64)")


def run_plan(runner, dtype: torch.dtype | str | None = None):
    """With blocks that the C++ reads."""
    return run_blocks(runner, dtype, 16)


def distance(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to what is expected."""
    return ((made - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_steps_equal_the_twins(settings):
    net = network(**settings)
    logits, _ = run_plan(TorchRunner(net))
    torch.testing.assert_close(run_plan(NativeRunner(net))[0], logits, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("weights, error", [("bfloat16", 0.02), ("int8", 0.06)])
@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_smaller_weights_are_as_near_as_their_rounding(settings, weights, error):
    net = network(**settings)
    logits, _ = run_plan(TorchRunner(net))
    made = run_plan(NativeRunner(net, weights), torch.float32)[0]
    assert 1e-4 < distance(made, logits) < error
    plain = run_plan(NativeRunner(net, weights, tiles=False), torch.float32)[0]
    assert distance(plain, made) < 1e-2 * error if weights == "int8" else distance(plain, made) < error


def quantized(net: GPT, bits: int, group: int | None, act_bits: int | None) -> GPT:
    """Every layer of the blocks rounded to the nearest."""
    for block in net.blocks:
        for module in block.modules():
            for name, linear in list(module.named_children()):
                if type(linear) is torch.nn.Linear:
                    groups = linear.weight.detach().unflatten(1, (-1, group or linear.in_features))
                    scale = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
                    values = (groups / scale[..., None]).round().flatten(1).to(torch.int8)
                    layer = QuantizedLinear.from_values(values, scale, linear.bias, bits, act_bits)
                    setattr(module, name, layer)
    return net


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(
    "bits, group, act_bits", [(8, None, 8), (8, None, None), (8, 32, None), (4, 32, None), (4, 64, None)]
)
@pytest.mark.parametrize("name", ["llama", "qwen", "wide"])
def test_quantized_layers_equal_the_twins(name, bits, group, act_bits, tiles):
    net = quantized(network(**ALL[name], ffn_hidden=192), bits, group, act_bits)
    logits, _ = run_plan(TorchRunner(net))
    made = run_plan(NativeRunner(net, tiles=tiles), torch.float32)[0]
    # Layers of 8-bit inputs multiply whole numbers; the others take theirs in bfloat16.
    assert distance(made, logits) < (1e-3 if act_bits else 0.015)
    assert NativeRunner(net).make_cache(1).dtype == torch.bfloat16


def test_groups_that_the_steps_of_the_products_do_not_divide_are_left_to_the_twin():
    net = quantized(network(n_embd=64), 4, 16, None)
    assert why_not(net) == "groups of 16 in blocks.0.attention.qkv, no multiple of 32"
    assert isinstance(make_runner(net), TorchRunner)
    assert isinstance(make_runner(network(n_embd=64)), NativeRunner)


@pytest.mark.parametrize("name", ["wide", "wider", "llama"])
@pytest.mark.parametrize("tiles", [True, False])
def test_bfloat16_caches_are_as_near_as_their_rounding(name, tiles):
    net = network(**ALL[name])
    logits, _ = run_plan(TorchRunner(net))
    assert 1e-5 < distance(run_plan(NativeRunner(net, tiles=tiles), torch.bfloat16)[0], logits) < 0.01


def test_bfloat16_weights_equal_a_network_of_rounded_weights():
    net = network(**ALL["llama"])
    made = run_plan(NativeRunner(net, "bfloat16"), torch.float32)[0]
    rounded = network(**ALL["llama"])
    for parameter in rounded.parameters():
        if parameter.ndim > 1 and parameter is not rounded.token_embedding.weight:
            parameter.data = parameter.data.bfloat16().float()
    # What is left is the rounding of activations: half as far as from the network as it was, or less.
    assert distance(made, run_plan(TorchRunner(rounded))[0]) < distance(made, run_plan(TorchRunner(net))[0])


def test_int8_products_are_exact_sums():
    """One layer's worth: x rounded per row, weights per output, all sums of whole numbers."""
    net = network(n_layer=1, n_embd=64, position="none", norm_place="post", tie_embeddings=False, vocab_size=64)
    for parameter in net.parameters():
        parameter.data.zero_()
    net.token_embedding.weight.data.normal_()
    net.head.weight.data.normal_()
    for norm in (net.blocks[0].attention_norm, net.blocks[0].feed_forward_norm):
        norm.weight.data.fill_(1.0)
    runner = NativeRunner(net, "int8")
    step = StepInput(list(range(40)), [Span(0, 40, 0, range(3))], range(40))
    logits = runner.forward(step, runner.make_cache(3))
    x = net.hidden(torch.arange(40)[None])[0].double()
    rounded = [(part / (part.abs().amax(1, keepdim=True) / 127)).round() for part in (x, net.head.weight.double())]
    scales = [part.abs().amax(1) / 127 for part in (x, net.head.weight.double())]
    expected = rounded[0] @ rounded[1].T * scales[0][:, None] * scales[1]
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("name", ["llama", "window", "modern", "wide", "wider"])
def test_a_request_is_the_same_to_the_bit_whatever_is_beside_it(name, weights, tiles):
    runner = NativeRunner(network(**ALL[name]), weights, tiles=tiles)
    together, read = run_plan(runner)
    for logits, tokens in zip(together, read):
        alone = runner.make_cache(2)
        step = StepInput(tokens, [Span(0, len(tokens), 0, range(2))], [len(tokens) - 1])
        assert torch.equal(runner.forward(step, alone)[0], logits)
    assert torch.equal(run_plan(NativeRunner(network(**ALL[name]), weights, threads=3, tiles=tiles))[0], together)


def test_layers_can_be_left_out():
    net = network(**ALL["llama"])
    runner, fewer = NativeRunner(net), network(**ALL["llama"], n_layer=2)
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("blocks.2")}
    fewer.load_state_dict(state)
    step = StepInput([1, 2, 3], [Span(0, 3, 0, [0])], [2])
    logits = runner.forward(step, runner.make_cache(1), layers=2)
    torch.testing.assert_close(logits[0], fewer(torch.tensor([[1, 2, 3]]))[0, -1], atol=3e-5, rtol=1e-4)


def test_embeddings_are_read_in_place_of_tokens():
    net = network(n_embd=64)
    step = StepInput([5, 0, 0, 6], [Span(0, 4, 0, [0])], [3], {1: torch.ones(64), 2: torch.full((64,), -0.5)})
    made, expected = (runner.forward(step, runner.make_cache(1)) for runner in (NativeRunner(net), TorchRunner(net)))
    torch.testing.assert_close(made, expected, atol=3e-5, rtol=1e-4)


def test_long_prompts_and_large_vocabularies():
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=3001, block_size=700, n_layer=2, n_head=4, n_embd=128, n_kv_head=2, position="rotary", window=90
    )
    net = GPT(config).eval()
    ids = torch.randint(3001, (1, 700))
    step = StepInput(ids[0].tolist(), [Span(0, 700, 0, range(44))], range(700))
    for tiles in (True, False):
        runner = NativeRunner(net, tiles=tiles)
        logits = runner.forward(step, runner.make_cache(44))
        torch.testing.assert_close(logits, net(ids)[0].detach(), atol=3e-5, rtol=1e-4)
        rounded = runner.forward(step, runner.make_cache(44, 32, torch.bfloat16))
        assert 1e-5 < distance(rounded, logits) < 5e-3


def test_a_compiler_that_refuses_is_told_once_and_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(UserWarning, match="computed by PyTorch, which is slower: .*false failed on .*network.cpp"):
        assert load_library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load_library.__wrapped__() is None


@pytest.mark.parametrize(
    "tokens, span, message",
    [
        ([61], Span(0, 1, 0, [0]), "vocabulary of 61"),
        ([-1], Span(0, 1, 0, [0]), "vocabulary of 61"),
        ([1], Span(0, 1, 64, [0, 1, 2, 3, 0]), "position 64 is beyond block_size=64"),
        ([1], Span(0, 1, 16, [0]), "do not hold 17 positions"),
        ([1], Span(0, 1, 0, [4]), "cache of 4 blocks"),
    ],
)
def test_memory_that_is_not_there_is_never_touched(tokens, span, message):
    runner = NativeRunner(network(n_embd=64))
    with pytest.raises(IndexError, match=message):
        runner.forward(StepInput(tokens, [span], [0]), runner.make_cache(4))


def test_autocast_reaches_the_products():
    net = network(**ALL["llama"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        runner = make_runner(net)
    assert (runner.weights, make_runner(net).weights) == ("bfloat16", "float32")


def test_what_it_does_not_know_is_said():
    assert "experts" in why_not(network(n_embd=64, moe=MoEConfig(experts=2, top_k=1)))
    assert "float64" in why_not(network().double())
    assert why_not(network(n_embd=64, n_head=1, head_dim=528)) == "head_size=528, above 512"
    odd = network(n_embd=64)
    odd.blocks[1].feed_forward.up = torch.nn.Sequential(odd.blocks[1].feed_forward.up)
    assert why_not(odd) == "Sequential as blocks.1.feed_forward.up"
    net = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=24))
    with pytest.raises(ValueError, match="n_embd=24, no multiple of 16: use TorchRunner"):
        NativeRunner(net)
    runner = NativeRunner(network(n_embd=64))
    for size, dtype, message in (
        (8, None, "block_size=8"),
        (16, torch.float16, "float16"),
        (16, "int4", "head_size=16"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.make_cache(2, size, dtype)


@pytest.mark.parametrize("kind, error", [("int8", 1e-3), ("int4", 1e-2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_caches_hold_the_numbers_of_the_twins(name, kind, error):
    net = network(**NETWORKS[name] | {"n_embd": 128})
    twin, exact = (run_plan(TorchRunner(net), cache)[0] for cache in (kind, torch.float32))
    made = run_plan(NativeRunner(net), kind)[0]
    # A number on the edge between two steps may fall to either side.
    assert distance(made, twin) < error < distance(made, exact)
