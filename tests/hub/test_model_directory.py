import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_gpt.hub import load_model, obstacles, save_model
from lightning_gpt.hub.huggingface import family_of
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.presets import PRESETS
from lightning_gpt.nn.rope_scaling import RopeScaling

transformers = pytest.importorskip("transformers")
V = 257
GPT2 = dataclasses.replace(PRESETS["tiny-gpt2"], vocab_size=V)
LLAMA = dataclasses.replace(PRESETS["tiny-llama"], vocab_size=V)
MODERN = dataclasses.replace(LLAMA, qk_norm=True, feed_forward="relu2", norm_affine=False)
READABLE = {
    "gpt2": GPT2,
    "gpt2 untied, padded": dataclasses.replace(GPT2, tie_embeddings=False, vocab_multiple=64),
    "gpt2 without bias": dataclasses.replace(GPT2, bias=False),
    "gpt2 without gains": dataclasses.replace(GPT2, norm_affine=False, feed_forward="relu2"),
    "gpt2 relu": dataclasses.replace(GPT2, feed_forward="relu", ffn_hidden=50),
    "llama": LLAMA,
    "llama untied, padded": dataclasses.replace(LLAMA, tie_embeddings=False, vocab_multiple=64),
    "llama with bias": dataclasses.replace(LLAMA, bias=True, rope_theta=777.0),
    "llama multi-query, geglu": dataclasses.replace(LLAMA, n_kv_head=1, feed_forward="geglu", norm_affine=False),
    "llama relu2, bias": dataclasses.replace(LLAMA, feed_forward="relu2", bias=True),
    "qwen3 by every knob": MODERN,
    "qwen3 untied, wide heads": dataclasses.replace(MODERN, tie_embeddings=False, head_dim=16, feed_forward="swiglu"),
}
MIXTRAL = dataclasses.replace(PRESETS["tiny-mixtral"], vocab_size=V)
READABLE |= {
    "gpt2 unscaled": dataclasses.replace(GPT2, attention_scale=1.0),
    "llama yarn": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("yarn", 4.0, 8)),
    "llama ntk": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("ntk", 4.0)),
    "llama linear": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", 4.0)),
    "llama llama3": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("llama3", 4.0, 8)),
    "mistral": dataclasses.replace(LLAMA, window=7, head_dim=16),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
    "qwen2 window": dataclasses.replace(LLAMA, qkv_bias=True, window=7, window_pattern="LS"),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, qk_norm_affine=True),
    "qwen3 window": dataclasses.replace(LLAMA, qk_norm=True, window=5, window_pattern="SL"),
    "mixtral": MIXTRAL,
    "mixtral top-1, window": dataclasses.replace(MIXTRAL, window=6, moe=MoEConfig(experts=3, top_k=1)),
}
OWN = {
    "softcap": (dataclasses.replace(MODERN, logit_softcap=15.0), ["logit_softcap=15"]),
    "rotary gpt2": (dataclasses.replace(GPT2, position="rotary"), ["position=rotary"]),
    "no position": (dataclasses.replace(GPT2, position="none"), ["position=none"]),
    "layernorm llama": (dataclasses.replace(LLAMA, norm="layernorm"), ["norm=layernorm"]),
    "gelu llama": (dataclasses.replace(LLAMA, feed_forward="gelu"), ["feed_forward=gelu"]),
    "alibi": (dataclasses.replace(GPT2, position="alibi"), ["position=alibi"]),
    "window gpt2": (dataclasses.replace(GPT2, window=5), ["window=5"]),
    "sinks": (dataclasses.replace(LLAMA, attention_sinks=True), ["attention_sinks=True"]),
    "mixed windows": (dataclasses.replace(LLAMA, bias=True, window=5), ["window=5"]),
    "switch": (
        dataclasses.replace(MIXTRAL, moe=MoEConfig(experts=4, top_k=1, renormalize=False)),
        ["moe.renormalize=False"],
    ),
    "balance by bias": (
        dataclasses.replace(MIXTRAL, moe=MoEConfig(experts=4, balance="bias")),
        ["moe.balance=bias"],
    ),
    "post-norm": (dataclasses.replace(GPT2, norm_place="post"), ["norm_place=post"]),
    "granite": (dataclasses.replace(LLAMA, residual_multiplier=0.5), ["residual_multiplier=0.5"]),
    "grouped gpt2": (dataclasses.replace(GPT2, n_kv_head=2, tie_embeddings=False), ["n_kv_head=2"]),
}
IDS = torch.randint(V, (2, 32), generator=torch.Generator().manual_seed(0))


def same(one, two):
    assert one.config == two.config
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        if name in ("token_embedding.weight", "head.weight"):
            a, b = a[:V], b[:V]  # padded rows mean nothing
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", READABLE)
def test_transformers_reads_what_we_write(name, make_network, tokenizer, tmp_path):
    net = make_network(READABLE[name])
    assert save_model(tmp_path / "model", net, tokenizer) == name.split()[0]
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert (peer.eval()(IDS).logits - net(IDS)).abs().max() < 1e-4
    back, back_tokenizer = load_model(tmp_path / "model")
    same(net, back)
    assert back_tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", OWN)
def test_own_format_names_what_has_no_counterpart(name, make_network, tokenizer, tmp_path):
    config, reasons = OWN[name]
    assert obstacles(config) == reasons
    net = make_network(config)
    assert save_model(tmp_path / "model", net, tokenizer) == "lightning_gpt"
    back, _ = load_model(tmp_path / "model")
    same(net, back)
    assert torch.equal(net(IDS), back(IDS))


def test_presets_have_a_family():
    own = ("glam-1.7b-64e", "glam-64b-64e", "switch-base")
    kinds = {name: family_of(config).model_type for name, config in PRESETS.items() if name not in own}
    assert set(kinds.values()) == {"gpt2", "llama", "mistral", "qwen2", "qwen3", "mixtral"}
    assert kinds["gpt2-xl"] == "gpt2"
    assert kinds["smollm2-135m"] == "llama"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_transformers_saves_again_comes_back(name, make_network, tmp_path):
    net = make_network(READABLE[name])
    save_model(tmp_path / "ours", net, None)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    back, _ = load_model(tmp_path / "theirs")
    same(net, back)


def test_a_network_that_transformers_resized_is_read_as_it_is_now(make_network, tmp_path):
    save_model(tmp_path / "ours", make_network(GPT2), None)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    peer.resize_token_embeddings(300)
    peer.save_pretrained(tmp_path / "theirs")
    back, _ = load_model(tmp_path / "theirs")
    assert back.config.vocab_size == 300
    with torch.no_grad():
        assert (peer.eval()(IDS).logits - back(IDS)).abs().max() < 1e-4


def test_a_bias_that_transformers_trained_is_not_dropped(make_network, tmp_path):
    save_model(tmp_path, make_network(READABLE["gpt2 without bias"]), None)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.0.ln_1.bias"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"ln_1\.bias is not all 0"):
        load_model(tmp_path)


def test_files_from_the_bare_body_are_read(make_network, tmp_path):
    net = make_network(GPT2)
    save_model(tmp_path, net, None)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()  # the mask that old files carry
    save_file(tensors, tmp_path / "model.safetensors")
    same(net, load_model(tmp_path)[0])


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_auto_tokenizer_gives_the_same_ids(kind, tokenizer, character_tokenizer, make_network, tmp_path):
    from lightning_gpt.text.trained import train_tokenizer

    text = "a cat, a big cat.\nA bat! café"
    if kind == "bpe":
        tokenizer = train_tokenizer("bpe", 280, [text * 3])
    elif kind == "char":
        tokenizer, text = character_tokenizer, "a cat, a bat.\nA café!"
    net = make_network(dataclasses.replace(GPT2, vocab_size=tokenizer.vocab_size))
    save_model(tmp_path, net, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.model_max_length == 32


def test_generation_settings_reach_transformers(make_network, tokenizer, tmp_path):
    save_model(tmp_path, make_network(LLAMA), tokenizer, generation={"do_sample": True, "temperature": 0.7})
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert settings.temperature == 0.7
    assert settings.eos_token_id == tokenizer.eos_id


def test_dtype_is_stored_and_converted(make_network, tmp_path):
    net = make_network(LLAMA)
    save_model(tmp_path, net, None, dtype=torch.bfloat16)
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(tmp_path / "model.safetensors").values())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(tmp_path)[0].head.weight.dtype == torch.bfloat16
    assert load_model(tmp_path, torch.float32)[0].head.weight.dtype == torch.float32


def test_loading_draws_no_random_number_and_keeps_ties(make_network, tmp_path):
    save_model(tmp_path, make_network(LLAMA), None)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    net, _ = load_model(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    assert net.head.weight is net.token_embedding.weight
    assert not net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_new_model_replaces_an_old_one_and_nothing_else(make_network, tmp_path):
    net = make_network(GPT2)
    save_model(tmp_path / "model", make_network(GPT2, seed=1), None)
    save_model(tmp_path / "model", net, None)
    same(net, load_model(tmp_path / "model")[0])
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(ValueError, match="no model directory"):
        save_model(tmp_path / "letters", net, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "model"]


def test_a_failed_save_leaves_the_old_model(make_network, tokenizer, tmp_path, monkeypatch):
    net = make_network(GPT2)
    save_model(tmp_path / "model", net, tokenizer)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_gpt.hub.model_directory.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "model", make_network(GPT2, seed=1), tokenizer)
    same(net, load_model(tmp_path / "model")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_larger_than_the_network_is_refused(make_network, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="257 ids, but the network's vocab_size=97"):
        save_model(tmp_path / "model", make_network(PRESETS["tiny-gpt2"]), tokenizer)


def broken(directory, change):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    change(config, tensors)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")


BREAKS = [
    (
        lambda c, t: c.update(model_type="mamba"),
        "model_type='mamba' is not supported: gpt2, llama, mistral, qwen2, qwen3, mixtral",
    ),
    (lambda c, t: t.pop("model.norm.weight"), r"lacks tensor\(s\) model.norm.weight"),
    (lambda c, t: t.update(adapter=torch.zeros(1)), r"unexpected tensor\(s\) adapter"),
    (lambda c, t: t.update({"model.norm.weight": torch.zeros(5)}), r"model.norm.weight has shape \(5,\)"),
    (lambda c, t: c.update(hidden_act="mish"), "hidden_act='mish'"),
    (lambda c, t: c.update(rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}), "rope_type='llama3'"),
    (lambda c, t: c.update(quantization_config={"bits": 4}), "quantized"),
    (lambda c, t: c["lightning_gpt"].update(n_experts=8), "n_experts"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_broken_directories_are_named(change, message, make_network, tmp_path):
    save_model(tmp_path, make_network(LLAMA), None)
    broken(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(make_network, tokenizer, tmp_path):
    save_model(tmp_path, make_network(GPT2), tokenizer)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=name) as error:
            load_model(tmp_path)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_model(tmp_path)


def test_config_of_the_published_gpt2_is_the_default():
    from lightning_gpt.hub.gpt2 import from_config

    assert dataclasses.replace(from_config({}), ffn_hidden=None) == GPTConfig()
