import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.quantized_linear import quantizable, quantized_layers
from lightning_gpt.quantization import blockwise
from lightning_gpt.quantization.blockwise import BlockWalk
from lightning_gpt.quantization.quantize import quantize_network
from lightning_gpt.quantization.settings import Settings, group_size_of, nbytes

LLAMA = GPTConfig(
    vocab_size=61,
    block_size=32,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=64,
    position="rotary",
    norm="rmsnorm",
    feed_forward="swiglu",
    bias=False,
)
KINDS = {
    "llama": LLAMA,
    "gpt2": GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=4, n_embd=64),
    "post-norm": GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=4, n_embd=64, norm_place="post"),
    "windows, skips": dataclasses.replace(LLAMA, window=5, window_pattern="SL", value_skip=True, input_skip=True),
    "alibi, parallel": dataclasses.replace(LLAMA, position="alibi", parallel_residual=True),
    "experts": dataclasses.replace(LLAMA, moe=MoEConfig(experts=2, shared=1)),
}
IDS = torch.randint(61, (12, 32), generator=torch.Generator().manual_seed(0))


def network(config=LLAMA, outliers=False):
    """Random weights; with outliers, three numbers of the stream are large, as in trained networks."""
    torch.manual_seed(0)
    net = GPT(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if outliers:
            for block in net.blocks:
                for norm in (block.attention_norm, block.feed_forward_norm):
                    norm.weight[[3, 17, 40]] *= 30
    return net


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(blockwise, "BATCH_TOKENS", 160)  # 5 sequences, so the last batch is smaller


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_block_by_block_is_the_whole_network(name, small_batches):
    net = network(KINDS[name])
    inputs = {}
    for layer, module in quantizable(net):
        module.register_forward_pre_hook(lambda _, x, layer=layer: inputs.__setitem__(layer, x[0].flatten(0, -2)))
    expected = net.hidden(IDS)
    whole = {layer: x.clone() for layer, x in inputs.items()}
    walk = BlockWalk(net, IDS)
    for index in range(len(net.blocks)):
        own = f"blocks.{index}."
        modules = {n.removeprefix(own): m for n, m in quantizable(net) if n.startswith(own)}
        for name_here, found in walk.statistics(index, modules, hessian=True).items():
            x = whole[own + name_here]
            assert found.rows == len(x) == IDS.numel()
            torch.testing.assert_close(found.hessian_KK, x.T @ x, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found.mean_K, x.abs().mean(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.largest_K, x.abs().amax(0), rtol=1e-4, atol=1e-6)
            assert 1 <= len(found.probes_MK) <= blockwise.PROBE_ROWS + len(walk.states)
        walk.advance(index)
    torch.testing.assert_close(net.final_norm(torch.cat(walk.states)), expected, rtol=1e-4, atol=1e-4)
    head = walk.head_statistics(hessian=True)
    torch.testing.assert_close(head.mean_K, expected.flatten(0, 1).abs().mean(0), rtol=1e-4, atol=1e-6)


def output_error(settings, outliers):
    """Relative error of the logits."""
    net = network(outliers=outliers)
    with torch.no_grad():
        before = net(IDS)
        quantize_network(net, settings, IDS)
        return float((net(IDS) - before).norm() / before.norm())


@pytest.mark.parametrize("settings", [Settings("gptq", 4), Settings("gptq", 4, act_order=False, clip=False)])
def test_gptq_beats_rounding_to_nearest(settings):
    reports = {}
    for chosen in (settings, dataclasses.replace(settings, method="rtn")):
        reports[chosen.method] = quantize_network(network(), chosen, IDS)
    for better, worse in zip(reports["gptq"], reports["rtn"], strict=True):
        assert better.name == worse.name
        assert better.error < worse.error


def test_awq_beats_rounding_to_nearest_where_few_inputs_matter():
    assert output_error(Settings("awq", 4), True) < 0.8 * output_error(Settings("rtn", 4), True)


def test_smoothquant_beats_plain_products_of_whole_numbers_where_inputs_have_outliers():
    assert output_error(Settings("smoothquant"), True) < 0.6 * output_error(Settings("rtn", 8, act_bits=8), True)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant"])
def test_every_method_on_every_kind_of_network(method, name):
    net = network(KINDS[name])
    before = copy.deepcopy(net)
    settings = Settings(method, 8, head=True)
    if name == "post-norm" and method in ("awq", "smoothquant"):
        with pytest.raises(ValueError, match=r"norm_place=post.*use gptq or rtn"):
            quantize_network(net, settings, IDS)
        return
    reports = quantize_network(net, settings, IDS)
    assert [report.name for report in reports] == list(quantized_layers(net))
    assert [report.name for report in reports] == [layer for layer, _ in quantizable(before, head=True)]
    assert all(0 < report.error < 0.05 for report in reports)
    assert not net.config.tie_embeddings
    assert net.head.act_bits == (8 if method == "smoothquant" else None)
    with torch.no_grad():
        expected = before(IDS)
        assert (net(IDS) - expected).norm() < 0.15 * expected.norm()
    assert nbytes(net) < 0.75 * nbytes(before)


def test_reported_errors_are_those_of_the_layers():
    net = network()
    plain = copy.deepcopy(net)
    for report in quantize_network(net, Settings("rtn", 4)):  # without a calibration: of the weights
        weight = plain.get_submodule(report.name).weight
        gap = net.get_submodule(report.name).dequantized() - weight
        assert report.error == pytest.approx(float(gap.norm() / weight.norm()), rel=1e-4)
    net = copy.deepcopy(plain)
    first = quantize_network(net, Settings("rtn", 8, act_bits=8), IDS)[0]
    with torch.no_grad():
        x = plain.blocks[0].attention_norm(plain.token_embedding(IDS)).flatten(0, 1)
        expected = F.linear(x, plain.blocks[0].attention.qkv.weight)
        gap = net.blocks[0].attention.qkv(x) - expected
    assert first.error == pytest.approx(float(gap.norm() / expected.norm()), rel=1e-3)


def test_progress_names_block_error_and_time():
    lines = []
    quantize_network(network(), Settings("rtn", 4), None, lines.append)
    assert [line.split(":")[0] for line in lines] == ["block 1 of 2", "block 2 of 2"]
    assert all("largest error" in line and "s left" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(bits=8), None),
        (Settings(bits=4), 64),
        (Settings(bits=4, group_size=-1), None),
        (Settings(bits=8, group_size=16), 16),
    ],
)
def test_groups_by_default(settings, expected):
    assert group_size_of(network(), settings) == expected


def test_groups_that_do_not_divide_name_the_nearest_that_do():
    net = network(dataclasses.replace(LLAMA, ffn_hidden=96))  # 64 and 96 inputs: 32 divides both
    with pytest.raises(ValueError, match=r"group_size=24 does not divide the 64 inputs of .*qkv: use 16 or 32"):
        group_size_of(net, Settings(bits=4, group_size=24))
    with pytest.raises(ValueError, match=r"group_size=64 does not divide the 96 inputs of .*down: use 32"):
        group_size_of(net, Settings(bits=4, group_size=64))
    odd = network(dataclasses.replace(LLAMA, ffn_hidden=97))
    with pytest.raises(ValueError, match=r"multiples of 2 inputs, but .*down has 97: .*96 or 98"):
        group_size_of(odd, Settings(bits=4))
    with pytest.raises(ValueError, match=r"nf4 takes multiples of 64 inputs, but .*down has 97"):
        group_size_of(odd, Settings("nf4"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gguf"}, "method='gguf' is unknown"),
        ({"bits": 3}, "bits=3 is not possible: use 8 or 4"),
        ({"method": "smoothquant", "bits": 4}, "use awq or gptq for 4"),
        ({"method": "nf4", "bits": 8}, "method=nf4 has 4 bits"),
        ({"method": "llm_int8", "group_size": 32}, "group_size=32 has no effect with method=llm_int8"),
        ({"act_bits": 8, "bits": 4}, "act_bits=8 with bits=4"),
        ({"act_bits": 8, "group_size": 32}, "act_bits=8 with group_size=32"),
        ({"act_bits": 4}, "act_bits=4"),
        ({"group_size": 0}, "group_size=0 must be at least 2"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"damping": 0.0}, "damping=0.0"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_broken_networks_are_named():
    net = network()
    with torch.no_grad():
        net.blocks[1].attention.out.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.attention\.out\.weight hold NaN"):
        quantize_network(net, Settings())
    net = network()
    with torch.no_grad():
        net.blocks[0].attention_norm.weight *= 1e38
    with pytest.raises(ValueError, match="activations behind block 0 are not finite"):
        quantize_network(net, Settings("smoothquant"), IDS)
    quantized = network()
    quantize_network(quantized, Settings())
    with pytest.raises(ValueError, match="quantized already"):
        quantize_network(quantized, Settings())
    with pytest.raises(ValueError, match="needs a calibration"):
        quantize_network(network(), Settings("gptq"))
