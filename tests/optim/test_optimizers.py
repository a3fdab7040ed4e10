import copy
import importlib.util
import sys

import jsonargparse
import pytest
import torch

from lightning_gpt.optim import SGD, AdamW, AdamW8bit, MuonAdamW, OptimizerSpec

needs_bitsandbytes = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
SPECS = [AdamW(lr=1e-2), MuonAdamW(), SGD(), pytest.param(AdamW8bit(lr=1e-2), marks=needs_bitsandbytes)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_learns_one_batch_and_resumes_bit_for_bit(tiny_gpt, train, spec, tied):
    network = tiny_gpt(tied=tied)
    optimizer = spec.build(network)
    losses = train(network, optimizer, 10)
    assert losses[-1] < 0.8 * losses[0]
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    resumed = tiny_gpt(tied=tied)
    again = spec.build(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert train(resumed, again, 3) == train(network, optimizer, 3)


def test_adamw_equals_torch_adamw_with_the_groups_of_nanogpt(tiny_gpt, train):
    ours, theirs = tiny_gpt(), tiny_gpt()
    decay = [p for p in theirs.parameters() if p.ndim >= 2]
    no_decay = [p for p in theirs.parameters() if p.ndim < 2]
    peer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.99),
        fused=True,
    )
    spec = AdamW(lr=1e-2, betas=(0.9, 0.99))
    assert train(ours, spec.build(ours), 5) == train(theirs, peer, 5)


def test_muon_groups_have_their_own_rates(tiny_gpt):
    spec = MuonAdamW(lr=0.03, adam_lr=1e-3, embedding_lr=8e-3, head_lr=4e-3, weight_decay=0.2, adam_weight_decay=0.1)
    groups = {group["name"]: group for group in spec.build(tiny_gpt(tied=False)).param_groups}
    assert {name: (g["algorithm"], g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "hidden": ("muon", 0.03, 0.2),
        "embeddings": ("adamw", 8e-3, 0.1),
        "head": ("adamw", 4e-3, 0.1),
        "vectors": ("adamw", 1e-3, 0.0),
    }
    assert "head" not in {group["name"] for group in spec.build(tiny_gpt(tied=True)).param_groups}


def test_muon_needs_blocks():
    with pytest.raises(ValueError, match="no trainable matrix"):
        MuonAdamW().build(torch.nn.Linear(4, 4))


@needs_bitsandbytes
def test_eight_bits_stay_close_to_thirty_two(tiny_gpt, train):
    full, eight = tiny_gpt(), tiny_gpt()
    optimizer = AdamW8bit(lr=3e-3, min_8bit_size=1024).build(eight)
    expected = train(full, AdamW(lr=3e-3).build(full), 20)
    actual = train(eight, optimizer, 20)
    assert actual == pytest.approx(expected, rel=0.05)
    dtypes = {name: optimizer.state[p]["state1"].dtype for name, p in eight.named_parameters()}
    assert dtypes["blocks.0.up.weight"] == torch.uint8
    assert dtypes["token_embedding.weight"] == torch.float32  # 2,048 elements, but an embedding
    assert dtypes["final_norm.weight"] == torch.float32  # too small to gain


def test_missing_bitsandbytes_names_the_extra(tiny_gpt, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what Python itself does to forbid an import
    monkeypatch.delitem(sys.modules, "lightning_gpt.optim.adamw8bit", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        AdamW8bit().build(tiny_gpt())
    assert str(caught.value) == "AdamW8bit needs the package bitsandbytes: pip install 'lightning_gpt[quant]'"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=0), "lr is 0; set it above 0"),
        (lambda: AdamW(lr=float("nan")), "lr is nan; set it above 0"),
        (lambda: AdamW(betas=(0.9, 1.0)), r"betas is \(0.9, 1.0\); give two numbers"),
        (lambda: AdamW8bit(weight_decay=-1), "weight_decay is -1; set it to 0"),
        (lambda: MuonAdamW(momentum=1.0), "momentum is 1.0; set it to at least 0"),
        (lambda: MuonAdamW(scale="max"), "scale is 'max'; choose one of spectral, rms"),
        (lambda: MuonAdamW(head_lr=-1.0), "head_lr is -1.0; set it above 0"),
        (lambda: SGD(momentum=0, nesterov=True), "nesterov is true but momentum is 0"),
    ],
)
def test_refuses_bad_settings_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_yaml_chooses_an_optimizer():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerSpec)
    chosen = {"class_path": "lightning_gpt.optim.MuonAdamW", "init_args": {"lr": 0.04, "adam_betas": [0.8, 0.95]}}
    spec = parser.instantiate(parser.parse_object({"optimizer": chosen})).optimizer
    assert isinstance(spec, MuonAdamW)
    assert (spec.lr, spec.adam_betas) == (0.04, (0.8, 0.95))
