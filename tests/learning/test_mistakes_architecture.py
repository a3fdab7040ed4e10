"""Planted mistakes in exercises of 05."""

import pytest
import torch
from judged import judged, mistake, named

from lightning_gpt.learning.chapter_05 import reference_attention as reference


def scores(q, k):
    return q @ k.transpose(-2, -1)


def hidden(s, value=-torch.inf):
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), value)


def not_causal(q, k, v):
    return (scores(q, k) / q.shape[-1] ** 0.5).softmax(-1) @ v


def unscaled(q, k, v):
    return hidden(scores(q, k)).softmax(-1) @ v


def zeros_after(q, k, v):
    return hidden((scores(q, k) / q.shape[-1] ** 0.5).softmax(-1), 0.0) @ v


def overflows(q, k, v):
    e = hidden(scores(q, k) / q.shape[-1] ** 0.5).exp()
    return e / e.sum(-1, keepdim=True) @ v


def sees_not_itself(q, k, v):
    s = scores(q, k) / q.shape[-1] ** 0.5
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(0), -torch.inf).softmax(-1) @ v


def post_norm(x, a, f, n1, n2):
    x = n1(x + a(x))
    return n2(x + f(x))


def forgets_the_stream(x, a, f, n1, n2):
    x = n1(x) + a(n1(x))
    return n2(x) + f(n2(x))


def one_norm(x, a, f, n1, n2):
    x = x + a(n1(x))
    return x + f(n1(x))


def in_place(x, a, f, n1, n2):
    x += a(n1(x))
    return x + f(n2(x))


MISTAKES = [
    ("gpt2", {"without_embeddings": 124e6}, "without_embeddings: 1.24e+08 is too large, by 45.8%"),
    ("gpt2", {"flops_per_token": None}, "flops_per_token: not filled in yet"),
    ("gpt2", {"flops_per_token": "many"}, "'many' is no number"),
    (
        "heads",
        {"split_heads": lambda x, heads: x.view(x.shape[0], heads, x.shape[1], -1)},
        "differs from the reference",
    ),
    ("heads", {"split_heads": lambda x, heads: x.view(*x.shape[:2], heads, -1)}, "the shape is (1, 3, 2, 4)"),
    ("heads", {"merge_heads": lambda x: x.flatten(2)}, "the shape is"),
    ("attention", {"causal_attention": not_causal}, "not causal: changing the last token moves"),
    ("attention", {"causal_attention": unscaled}, "differs from the reference by up to"),
    ("attention", {"causal_attention": zeros_after}, "not causal"),
    ("attention", {"causal_attention": overflows}, "with scores of some hundreds"),
    ("attention", {"causal_attention": sees_not_itself}, "NaN or infinite"),
    ("attention", {"causal_attention": lambda q, k, v: None}, "nothing is returned"),
    ("attention", {"causal_attention": lambda q, k, v: reference(q.detach(), k, v)}, "the gradient"),
    ("block", {"pre_norm_block": post_norm}, "this is a post-norm block"),
    ("block", {"pre_norm_block": forgets_the_stream}, "differs from the reference"),
    ("block", {"pre_norm_block": one_norm}, "differs from the reference"),
    ("block", {"pre_norm_block": in_place}, "x was changed in place"),
]


@pytest.mark.parametrize("name, parts, message", MISTAKES)
def test_a_mistake_is_named(name, parts, message):
    assert message in mistake("05", name, parts)


def test_another_way_to_write_attention_passes():
    def attend(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    assert judged(named("05", "attention"), {"causal_attention": attend}) is None
