import ast
import dataclasses
import inspect
import re
from itertools import pairwise

import pytest

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.rope_scaling import RopeScaling

REFUSED = [
    ({"vocab_size": 0}, "vocab_size=0"),
    ({"block_size": -1}, "block_size=-1"),
    ({"n_layer": 0}, "n_layer=0"),
    ({"n_head": 0}, "n_head=0"),
    ({"n_embd": 0}, "n_embd=0"),
    ({"vocab_multiple": 0}, "vocab_multiple=0"),
    ({"ffn_multiple": 0}, "ffn_multiple=0"),
    ({"ffn_hidden": 0}, "ffn_hidden=0"),
    ({"head_dim": 0}, "head_dim=0"),
    ({"n_embd": 100, "n_head": 3}, "n_embd=100"),
    ({"n_kv_head": 5}, "n_kv_head=5"),
    ({"n_kv_head": 0}, "n_kv_head=0"),
    ({"position": "rotary", "head_dim": 5}, "head_dim=5"),
    ({"position": "sinusoid"}, "position='sinusoid'"),
    ({"rope_fraction": 0.5}, "rope_fraction=0.5"),
    ({"position": "rotary", "rope_fraction": 0.0}, "rope_fraction=0.0"),
    ({"position": "rotary", "rope_fraction": 0.01}, "rope_fraction=0.01"),
    ({"rope_scaling": RopeScaling("linear", 2.0)}, "rope_scaling="),
    ({"window": 0}, "window=0"),
    ({"window_pattern": "SL"}, "window_pattern='SL'"),
    ({"window": 8, "window_pattern": "sl"}, "window_pattern='sl'"),
    ({"window": 8, "window_pattern": ""}, "window_pattern=''"),
    ({"qk_norm_affine": True}, "qk_norm_affine=True"),
    ({"attention_softcap": -1.0}, "attention_softcap=-1.0"),
    ({"attention_scale": 0.0}, "attention_scale=0.0"),
    ({"norm_place": "middle"}, "norm_place='middle'"),
    ({"parallel_residual": True, "norm_place": "post"}, "parallel_residual=True"),
    ({"residual_multiplier": 0.0}, "residual_multiplier=0.0"),
    ({"embedding_multiplier": -1.0}, "embedding_multiplier=-1.0"),
    ({"norm": "batchnorm"}, "norm='batchnorm'"),
    ({"feed_forward": "mish"}, "feed_forward='mish'"),
    ({"initialization": "xavier"}, "initialization='xavier'"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"dropout": -0.1}, "dropout=-0.1"),
    ({"norm_eps": 0.0}, "norm_eps=0.0"),
    ({"rope_theta": -1.0}, "rope_theta=-1.0"),
    ({"init_std": 0.0}, "init_std=0.0"),
    ({"logit_softcap": 0.0}, "logit_softcap=0.0"),
]


@pytest.mark.parametrize(("fields", "names"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line(fields, names):
    with pytest.raises(ValueError) as error:
        GPTConfig(**fields)
    assert names in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "rope_scaling.kind='dynamic'"),
        ({"kind": "linear", "factor": 0.5}, "rope_scaling.factor=0.5"),
        ({"kind": "yarn", "factor": 2.0}, "rope_scaling.original_block_size=None"),
        ({"kind": "llama3", "factor": 2.0}, "rope_scaling.original_block_size=None"),
        ({"kind": "yarn", "factor": 2.0, "original_block_size": 8, "beta_slow": 40.0}, "rope_scaling.beta_slow=40.0"),
    ],
)
def test_rope_scaling_that_cannot_work_is_refused(fields, names):
    with pytest.raises(ValueError, match=re.escape(names)):
        RopeScaling(**fields)


def test_windows_of_the_layers():
    shape = {"n_layer": 5, "block_size": 64}
    assert GPTConfig(**shape).windows == (None,) * 5
    assert GPTConfig(**shape, window=8).windows == (8,) * 5
    assert GPTConfig(**shape, window=8, window_pattern="SSL").windows == (8, 8, None, 8, 8)
    assert GPTConfig(**shape, window=64).windows == (None,) * 5


def test_derived_values():
    assert GPTConfig(vocab_size=50257, vocab_multiple=128).padded_vocab_size == 50304
    assert GPTConfig().hidden_size == 3072
    assert GPTConfig(feed_forward="swiglu", ffn_multiple=64).hidden_size == 2048
    assert GPTConfig(n_embd=100, n_head=4, feed_forward="swiglu", ffn_multiple=8).hidden_size == 272
    assert GPTConfig(n_head=12, n_kv_head=4).kv_heads == 4
    assert GPTConfig(n_embd=100, n_head=3, head_dim=8).head_size == 8


def test_dict_round_trip_and_foreign_fields():
    scaling = RopeScaling("yarn", 2.0, 512)
    config = GPTConfig(n_kv_head=3, logit_softcap=15.0, position="rotary", rope_scaling=scaling)
    assert GPTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="n_experts"):
        GPTConfig.from_dict(config.to_dict() | {"n_experts": 8})


def test_every_field_is_documented():
    body = ast.parse(inspect.getsource(GPTConfig)).body[0].body
    documented = {
        one.target.id
        for one, two in pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(GPTConfig)}
