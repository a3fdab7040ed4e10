import copy
import json

import pytest
import torch

from lightning_gpt.hub import open_model, save_model
from lightning_gpt.hub.adapters import (
    LoRA,
    adapters,
    adapters_off,
    add_adapters,
    base_fingerprint,
    load_adapter,
    merge_adapters,
    save_adapter,
    trainable_state,
)
from lightning_gpt.nn import GPTConfig

CONFIG = GPTConfig(
    vocab_size=257,
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
    "lora": LoRA(rank=4),
    "rslora": LoRA(rank=4, rank_stabilized=True),
    "dora": LoRA(rank=4, decomposed=True),
    "qlora": LoRA(rank=4, quantization="nf4"),
    "qdora": LoRA(rank=4, quantization="nf4", decomposed=True),
}
IDS = torch.arange(40).view(2, 20) % 257


def stir(net):
    """As if it had learnt something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_state(net).values():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_merging_keeps_what_they_do(make_network, kind):
    net = make_network(CONFIG)
    before = copy.deepcopy(net)(IDS)
    add_adapters(net, KINDS[kind])
    exact = KINDS[kind].quantization is None
    fresh = net(IDS)
    torch.testing.assert_close(fresh, before, atol=1e-4 if exact else 10, rtol=1e-4)
    assert all(".lora_" in name for name in trainable_state(net)) and len(adapters(net)) == 8
    stir(net)
    with torch.no_grad():
        adapted = net(IDS)
        with adapters_off(net):
            torch.testing.assert_close(net(IDS), fresh)
        assert (adapted - fresh).abs().max() > 0.1
        torch.testing.assert_close(net(IDS), adapted)
        merged = merge_adapters(net)
        assert not adapters(merged) and merged.state_dict().keys() == make_network(CONFIG).state_dict().keys()
        torch.testing.assert_close(merged(IDS), adapted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_adapters_alone(make_network, kind):
    net = make_network(CONFIG)
    add_adapters(net, KINDS[kind])
    stir(net)
    net.answer_loss(IDS[:, :-1], IDS[:, 1:])[0].backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == trainable_state(net).keys()


def test_the_saved_format_is_pefts(make_network, tokenizer, tmp_path):
    from peft import PeftModel

    net = make_network(CONFIG)
    save_model(tmp_path / "base", net, tokenizer)
    mark = base_fingerprint(net)
    base = copy.deepcopy(net)
    add_adapters(net, KINDS["lora"])
    stir(net)
    save_adapter(tmp_path / "adapter", net, KINDS["lora"], str(tmp_path / "base"), mark)
    expected = net(IDS)
    peer = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    torch.testing.assert_close(peer(IDS), expected)
    opened, same = open_model(tmp_path / "adapter")
    torch.testing.assert_close(opened(IDS), expected, atol=1e-4, rtol=1e-4)
    assert same.fingerprint == tokenizer.fingerprint
    other = make_network(CONFIG, seed=5)
    with pytest.raises(ValueError, match="an adapter of another base"):
        load_adapter(tmp_path / "adapter", other)


def test_bad_settings(make_network):
    for settings, words in (
        ({"rank": 0}, "lora.rank=0"),
        ({"alpha": 0}, "lora.alpha=0"),
        ({"dropout": 1.0}, "lora.dropout=1.0"),
        ({"layers": ("qkv", "head")}, "lora.layers names head"),
    ):
        with pytest.raises(ValueError, match=words):
            LoRA(**settings)
    with pytest.raises(ValueError, match="no such linear layer"):
        add_adapters(make_network(CONFIG), LoRA(layers=("up",)))


def test_an_adapter_that_does_not_fit_is_refused(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    add_adapters(net, KINDS["lora"])
    save_adapter(tmp_path / "adapter", net, KINDS["lora"], "gone", "x")
    about = json.loads((tmp_path / "adapter" / "adapter_base.json").read_text())
    assert about["lora"]["rank"] == 4
    (tmp_path / "adapter" / "adapter_base.json").unlink()  # as peft alone would have written it
    from dataclasses import replace

    with pytest.raises((ValueError, RuntimeError), match=r"does not fit|size mismatch"):
        load_adapter(tmp_path / "adapter", make_network(replace(CONFIG, n_layer=1)))
    with pytest.raises(FileNotFoundError, match="is an adapter of gone"):
        open_model(tmp_path / "adapter")
