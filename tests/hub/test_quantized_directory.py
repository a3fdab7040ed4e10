import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_gpt.hub import compressed_tensors, load_model, open_model, save_model
from lightning_gpt.hub.compressed_tensors import pack_int32, unpack_int32
from lightning_gpt.hub.quantized_directory import dequantize_network, is_quantized, refuse_quantized
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.presets import PRESETS
from lightning_gpt.nn.quantized_linear import dequantize, quantizable, quantized_layers
from lightning_gpt.quantization.grid import round_to_nearest
from lightning_gpt.quantization.quantize import quantize_network
from lightning_gpt.quantization.settings import Settings

transformers = pytest.importorskip("transformers")
V = 257
LLAMA = GPTConfig(
    vocab_size=V,
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
READABLE = {
    "llama": LLAMA,
    "llama with bias": dataclasses.replace(LLAMA, bias=True, tie_embeddings=False, vocab_multiple=64),
    "llama relu2": dataclasses.replace(LLAMA, feed_forward="relu2"),
    "mistral": dataclasses.replace(LLAMA, window=7, n_kv_head=1),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, qk_norm_affine=True, head_dim=32),
}
OWN = {
    "gpt2": dataclasses.replace(PRESETS["tiny-gpt2"], vocab_size=V, n_embd=64),
    "softcap": dataclasses.replace(LLAMA, logit_softcap=9.0, norm="layernorm", bias=True),
    "mixture": dataclasses.replace(PRESETS["tiny-mixtral"], vocab_size=V, n_embd=64),
}
SCHEMES = {
    "w8a16": Settings(bits=8),
    "w4a16": Settings(bits=4),
    "w8a16 in groups, with head": Settings(bits=8, group_size=32, head=True),
    "w4a16 of rows, with head": Settings(bits=4, group_size=-1, head=True),
}
W8A8 = Settings(bits=8, act_bits=8, head=True)
IDS = torch.randint(V, (2, 32), generator=torch.Generator().manual_seed(0))


def quantized(make_network, config, settings):
    net = make_network(config)
    quantize_network(net, settings)
    return net


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [8, 24, 30])
def test_packed_numbers_are_those_of_the_package(bits, columns):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    low = -(1 << (bits - 1))
    values = torch.randint(low, -low, (5, columns), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = pack_int32(values, bits)
    assert torch.equal(packed[:, : columns * bits // 32], pack_to_int32(values, bits)[:, : columns * bits // 32])
    assert torch.equal(unpack_int32(packed, bits, columns), values)
    assert torch.equal(unpack_int32(pack_to_int32(values, bits), bits, columns), values)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", READABLE)
def test_transformers_computes_the_same_logits(name, scheme, make_network, tokenizer, tmp_path):
    net = quantized(make_network, READABLE[name], SCHEMES[scheme])
    assert save_model(tmp_path / "model", net, tokenizer) == name.split()[0]
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        ours, theirs = net(IDS), peer.eval()(IDS).logits
    assert (theirs - ours).abs().max() < 2e-5 * ours.abs().max()


@pytest.mark.parametrize("name", READABLE)
def test_transformers_reads_products_of_whole_numbers(name, make_network, tokenizer, tmp_path):
    net = quantized(make_network, READABLE[name], W8A8)
    save_model(tmp_path / "model", net, tokenizer)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        ours, theirs = net(IDS), peer(IDS).logits
        plain = dequantize_network(net)(IDS)
    # It rounds inputs by max |x| / 127.5 where vLLM and we have 127, so the errors of the inputs are others, as large.
    assert (theirs - ours).norm() < 2 * (ours - plain).norm()
    assert (theirs - ours).norm() < 0.1 * ours.norm()
    weights = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert (weights.eval()(IDS).logits - plain).abs().max() < 2e-5 * plain.abs().max()


@pytest.mark.parametrize("scheme", [*SCHEMES, "w8a8"])
@pytest.mark.parametrize("name", [*READABLE, *OWN])
def test_directories_come_back_as_they_were(name, scheme, make_network, tokenizer, tmp_path):
    net = quantized(make_network, (READABLE | OWN)[name], (SCHEMES | {"w8a8": W8A8})[scheme])
    assert save_model(tmp_path / "model", net, tokenizer) == ("lightning_gpt" if name in OWN else name.split()[0])
    back, _ = load_model(tmp_path / "model")
    assert back.config == net.config
    state, again = net.state_dict(), back.state_dict()
    assert state.keys() == again.keys()
    for key, tensor in state.items():
        rows = V if key.startswith(("head", "token_embedding")) else len(tensor)  # padded rows mean nothing
        assert torch.equal(tensor[:rows], again[key][:rows]), key
    with torch.no_grad():
        assert torch.equal(back(IDS), net(IDS))
    narrow, _ = load_model(tmp_path / "model", torch.bfloat16)
    assert all(layer.scale.dtype == torch.float32 for layer in quantized_layers(narrow).values())
    assert narrow.token_embedding.weight.dtype == torch.bfloat16


def test_directories_in_bfloat16_keep_whole_numbers_and_scales(make_network, tmp_path):
    net = quantized(make_network, LLAMA, SCHEMES["w4a16"])
    save_model(tmp_path, net, None, dtype=torch.bfloat16)
    back, _ = load_model(tmp_path)
    for name, layer in quantized_layers(net).items():
        assert torch.equal(layer.weight, back.get_submodule(name).weight)
        assert torch.equal(layer.scale, back.get_submodule(name).scale)
    assert back.token_embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llm_int8", "nf4"])
@pytest.mark.parametrize("name", ["llama", "llama with bias", "gpt2"])
def test_bitsandbytes_layers_go_and_come(name, kind, make_network, tokenizer, tmp_path):
    net = quantized(make_network, (READABLE | OWN)[name], Settings(method=kind))
    assert is_quantized(net)
    with torch.no_grad():
        before = net(IDS)
    save_model(tmp_path / "model", net, tokenizer)
    back, _ = load_model(tmp_path / "model")
    plain = dequantize_network(back)
    expected = dequantize_network(net)
    for (key, one), (_, other) in zip(expected.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(one[:V], other[:V], atol=1e-6), key
    with torch.no_grad():
        again = load_model(tmp_path / "model")[0](IDS)
        # nf4 rounds scales to bfloat16 on some CPUs, llm_int8 the inputs to 8 bits
        assert (again - before).norm() < 0.03 * before.norm()
        if name != "gpt2":
            peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
            assert (peer(IDS).logits - before).norm() < 0.03 * before.norm()


def test_weights_after_bitsandbytes_fast_kernel_are_the_same(make_network, tmp_path):
    save_model(tmp_path, quantized(make_network, LLAMA, Settings(method="nf4")), None)
    used, unused = load_model(tmp_path)[0], load_model(tmp_path)[0]
    with torch.no_grad():
        used(IDS)
    pairs = zip(dequantize_network(used).parameters(), dequantize_network(unused).parameters(), strict=True)
    assert all((one - other).abs().max() <= 2**-8 * other.abs().max() for one, other in pairs)


def test_a_directory_of_another_program_is_read(make_network, tmp_path):
    """One that the package itself makes of transformers' model: other names of the same things, and all in one go."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    save_model(tmp_path / "float", make_network(LLAMA), None)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    config = QuantizationConfig(
        config_groups={"all": {"targets": ["Linear"], "weights": args}}, ignore=["lm_head"], format="pack-quantized"
    )
    apply_quantization_config(peer, config)
    for module in peer.modules():
        if hasattr(module, "weight_scale"):
            scale = module.weight.detach().unflatten(1, (-1, 32)).abs().amax(-1) / 7.5
            module.weight_scale.data.copy_(scale)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(peer)
    peer.save_pretrained(tmp_path / "theirs")
    about = json.loads((tmp_path / "theirs" / "config.json").read_text())
    if "quantization_config" not in about:
        compressor.update_config(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert {layer.bits for layer in quantized_layers(ours).values()} == {4}
    assert len(quantized_layers(ours)) == 8
    with torch.no_grad():
        expected = again(IDS).logits
        assert (ours(IDS) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "left_out"), [("mixture", ()), ("llama", ("q_proj",)), ("llama", ("gate_proj", "up_"))]
)
def test_what_no_layer_of_ours_can_hold_is_read_as_plain_weights(name, left_out, make_network, tmp_path):
    """Experts are a stack here, and q, k, v one matrix: quantized by another program one by one."""
    config = (READABLE | OWN)[name]
    save_model(tmp_path, make_network(config), None)
    plain, tensors = load_file(tmp_path / "model.safetensors"), {}
    for key, tensor in plain.items():
        tensors[key] = tensor
        chosen = "_proj." in key or ".experts." in key
        if chosen and not any(part in key for part in left_out):
            values, scale = round_to_nearest(tensor, 4, 2)
            del tensors[key]
            tensors |= compressed_tensors.store(key, compressed_tensors.WholeNumbers(values, scale), 4, None)
            plain[key] = dequantize(values, scale)
    about = json.loads((tmp_path / "config.json").read_text())
    about["quantization_config"] = compressed_tensors.quantization_config(4, 32, None, ["lm_head"])
    (tmp_path / "config.json").write_text(json.dumps(about))
    save_file(tensors, tmp_path / "model.safetensors")
    ours, _ = load_model(tmp_path)
    del about["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    save_file(plain, tmp_path / "model.safetensors")
    expected, _ = load_model(tmp_path)
    missing = {"mixture": 0, "llama": 2}[name]
    assert len(quantized_layers(ours)) == sum(1 for _ in quantizable(expected)) - missing
    with torch.no_grad():
        assert torch.allclose(ours(IDS), expected(IDS), atol=1e-5)


def test_training_refuses_and_says_what_to_do(make_network):
    net = quantized(make_network, LLAMA, SCHEMES["w8a16"])
    with pytest.raises(ValueError, match=r"model.init_from=there is quantized .*--method dequantize --out"):
        refuse_quantized(net, "model.init_from=there")
    refuse_quantized(dequantize_network(net), "it")
    assert all(parameter.requires_grad for parameter in net.parameters())


def broken(directory, change):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    change(config["quantization_config"], config["quantization_config"]["config_groups"]["group_0"], tensors)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")


Q = "model.layers.0.self_attn.q_proj."
BREAKS = [
    (lambda c, g, t: c.update(quant_method="exl2"), "quant_method='exl2' are not supported"),
    (lambda c, g, t: c.update(format="float-quantized"), "format='float-quantized' is not supported"),
    (lambda c, g, t: g["weights"].update(symmetric=False), r"weights.symmetric=False is not supported: True is"),
    (lambda c, g, t: g["weights"].update(num_bits=3), r"weights.num_bits=3 is not supported: 4, 8 are"),
    (lambda c, g, t: g["weights"].update(actorder="group"), "actorder=group"),
    (lambda c, g, t: c["config_groups"].update(other=g), "2 config_groups"),
    (lambda c, g, t: t.pop(Q + "weight_scale"), f"lacks {Q}weight_scale"),
    (lambda c, g, t: t.pop(Q + "weight_packed"), rf"lacks tensor\(s\) {Q}weight"),
    (lambda c, g, t: t.update({Q + "weight_scale": torch.ones(64, 3)}), "3 groups for 64 inputs"),
    (lambda c, g, t: t.update({Q + "weight_zero_point": torch.ones(64, 1)}), "weight_zero_point is not zero"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_broken_directories_are_named(change, message, make_network, tmp_path):
    save_model(tmp_path, quantized(make_network, LLAMA, SCHEMES["w4a16"]), None)
    broken(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        open_model(tmp_path)
    assert str(tmp_path) in str(error.value)
