"""Exercises of 05, architecture."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same, untouched
from lightning_gpt.learning.runs import Study, at_least, folder, has, healthy, opened

HEADS_STUB = '''
def split_heads(x, heads):
    """(B, T, C) -> (B, heads, T, C / heads): head h holds columns h * D to (h + 1) * D - 1, D = C / heads."""
    raise NotImplementedError


def merge_heads(x):
    """The inverse: (B, H, T, D) -> (B, T, H * D)."""
    raise NotImplementedError


if __name__ == "__main__":
    import torch

    x = torch.arange(24.0).view(1, 2, 12)
    assert split_heads(x, 3).shape == (1, 3, 2, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)
    print("as far as this goes, right; now: lightning-gpt learn check THIS")
'''


def check_heads(answer: Any) -> None:
    """split and merge, over several shapes."""
    import torch

    split, merge = function(answer, "split_heads"), function(answer, "merge_heads")
    for B, T, heads, D in ((1, 3, 2, 4), (2, 5, 3, 2), (2, 4, 1, 6), (3, 1, 4, 1)):
        x = torch.randn(B, T, heads * D)
        wanted = torch.stack([x[..., h * D : (h + 1) * D] for h in range(heads)], dim=1)
        same(f"split_heads of {B} x {T} x {heads * D} into {heads}", split(x.clone(), heads), wanted)
        same(f"merge_heads of {B} x {heads} x {T} x {D}", merge(wanted.clone()), x)


def solve_heads() -> dict:
    """As nn/attention.py does."""
    return {
        "split_heads": lambda x, heads: x.view(*x.shape[:2], heads, -1).transpose(1, 2),
        "merge_heads": lambda x: x.transpose(1, 2).flatten(2),
    }


ATTENTION_STUB = '''
import torch


def causal_attention(q, k, v):
    """softmax(q k^T / sqrt(D) + mask) v, where position t sees positions 0 to t only.

    Args:
        q, k, v: (B, H, T, D) each.

    Returns:
        (B, H, T, D).
    """
    raise NotImplementedError


if __name__ == "__main__":
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    y = causal_attention(q, k, v)
    assert y.shape == (2, 4, 5, 8)
    assert torch.allclose(y[:, :, 0], v[:, :, 0], atol=1e-6), "the first position sees only itself"
    print("as far as this goes, right; now: lightning-gpt learn check THIS")
'''


def reference_attention(q: Any, k: Any, v: Any) -> Any:
    """This package's readable attention, with a causal mask."""
    import torch

    from lightning_gpt.nn.attention_paths import plain_attention

    T, D = q.shape[-2:]
    return plain_attention(q, k, v, torch.full((T, T), -torch.inf).triu(1), D**-0.5, 0.0)


def check_attention(answer: Any) -> None:
    """Shape, causality, scale, value; large scores stay finite."""
    import torch

    attend = function(answer, "causal_attention")
    for B, H, T, D in ((1, 1, 2, 4), (2, 3, 7, 8), (2, 1, 1, 4), (1, 2, 33, 16)):
        q, k, v = torch.randn(3, B, H, T, D).unbind()
        before = [one.clone() for one in (q, k, v)]
        shape = f"B={B} H={H} T={T} D={D}"
        given = attend(q, k, v)
        for name, old, new in zip("qkv", before, (q, k, v)):
            untouched(name, old, new)
        if getattr(given, "shape", None) == q.shape and T > 1:
            k2, v2 = k.clone(), v.clone()
            k2[:, :, -1], v2[:, :, -1] = k2[:, :, -1] + 5, v2[:, :, -1] - 5
            moved = (attend(q, k2, v2)[:, :, :-1] - given[:, :, :-1]).abs().max()
            if moved > 1e-6:
                raise Wrong(f"{shape}: not causal: changing the last token moves earlier outputs by {moved:.2g}")
        same(f"causal_attention, {shape}", given, reference_attention(*before))
    q = torch.randn(1, 2, 5, 4, requires_grad=True)
    grads = [torch.autograd.grad(one(q, q, q).square().sum(), q)[0] for one in (attend, reference_attention)]
    same("the gradient", *grads, 1e-4)
    q, k, v = torch.randn(3, 1, 2, 6, 8).unbind()
    same("with scores of some hundreds", attend(60 * q, 60 * k, v), reference_attention(60 * q, 60 * k, v), 1e-4)


BLOCK_STUB = '''
import torch
from torch import nn


def pre_norm_block(x, attention, feed_forward, norm_1, norm_2):
    """One block of GPT-2: each branch reads a normalised stream and is added to the stream itself.

    Args:
        x: the residual stream (B, T, C).
        attention, feed_forward: (B, T, C) -> (B, T, C).
        norm_1, norm_2: before attention, and before the feed-forward.

    Returns:
        (B, T, C).
    """
    raise NotImplementedError


if __name__ == "__main__":
    x, zero = torch.randn(2, 3, 8), torch.zeros_like
    y = pre_norm_block(x, zero, zero, nn.LayerNorm(8), nn.LayerNorm(8))
    assert torch.equal(y, x), "branches that give nothing leave the stream as it is"
    print("as far as this goes, right; now: lightning-gpt learn check THIS")
'''


def reference_block(x: Any, attention: Any, feed_forward: Any, norm_1: Any, norm_2: Any) -> Any:
    """nn/blocks.py's Block with these parts in place of its own."""
    from types import SimpleNamespace

    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.blocks import Block

    block = Block(GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=8), 0)
    parts = {
        "attention": lambda h, shared, first_value: (attention(h), None),
        "feed_forward": feed_forward,
        "attention_norm": norm_1,
        "feed_forward_norm": norm_2,
    }
    for name, part in parts.items():
        delattr(block, name)
        setattr(block, name, part)
    return block.branches(x, SimpleNamespace(cache=None), None)[0]


def check_block(answer: Any) -> None:
    """Against the reference, with norms that differ and branches that are no identity."""
    import torch
    from torch import nn

    block = function(answer, "pre_norm_block")
    for C in (8, 16):
        mix, feed = nn.Linear(C, C), nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))
        norms = nn.LayerNorm(C), nn.LayerNorm(C)
        with torch.no_grad():
            for norm in norms:
                norm.weight.normal_(), norm.bias.normal_()
        x = 3 * torch.randn(2, 4, C) + 1
        before = x.clone()
        given = block(x, mix, feed, *norms)
        untouched("x", before, x)
        post = norms[1]((h := norms[0](before + mix(before))) + feed(h))
        if getattr(given, "shape", None) == post.shape and torch.allclose(given, post, atol=1e-5):
            raise Wrong("this is a post-norm block: the norms come after the sums")
        same(f"pre_norm_block, C={C}", given, reference_block(before, mix, feed, *norms))


HEAD_STUB = """
run:       # the run, such as runs/shakespeare
layer:     # counted from 0
head:      # counted from 0
"""
PROBE = "KING HENRY. Once more unto the breach, dear friends, once more; or close the wall up with our English dead."


def check_head(answer: dict) -> None:
    """The head gives the token before more weight than most heads of the network do."""
    from lightning_gpt.callbacks.attention_maps import attention_weights
    from lightning_gpt.hub import open_model

    net, tokenizer = open_model(folder(answer, "run"))
    ids = tokenizer.encode(PROBE)[: net.config.block_size]
    weights = attention_weights(net.eval(), ids)
    before = weights.diagonal(-1, -2, -1).mean(-1)
    layer, head = (int(number(name, answer.get(name))) for name in ("layer", "head"))
    if not (0 <= layer < len(before) and 0 <= head < before.shape[1]):
        raise Wrong(f"there are layers 0 to {len(before) - 1} and heads 0 to {before.shape[1] - 1}")
    own, best = float(before[layer, head]), float(before.max())
    if own < 0.75 * best:
        raise Wrong(f"this head gives the token before {own:.0%} of its weight; another gives it more")


COUNTS_STUB = """
without_embeddings:     # parameters
flops_per_token:        # of a forward pass, at a context of 1,024
"""


def check_counts(answer: dict) -> None:
    """GPT-2, within 1%."""
    from lightning_gpt.nn.flops import body_parameters, forward_flops_per_token
    from lightning_gpt.nn.presets import PRESETS

    config = PRESETS["gpt2"]
    close("without_embeddings", answer.get("without_embeddings"), body_parameters(config), 0.01)
    close("flops_per_token", answer.get("flops_per_token"), forward_flops_per_token(config, 1024), 0.01)


STUDY_STUB = """
experiment:        # the folder with results.json
best:              # name of the variant of the lowest mean loss
distinguishable:   # yes or no: from the next best, by the paired 95% interval of these seeds
"""


def check_study(answer: dict) -> None:
    """Eight heads beside the others; what three seeds say of the best two."""
    from lightning_gpt.experiments.statistics import estimate

    study = Study(answer)
    study.has("8-heads", "4-heads")
    study.needs(4, 3)
    equal("best", answer.get("best"), study.best())
    others = {name: values for name, values in study.values.items() if name != study.best()}
    second = min(others, key=lambda name: sum(others[name].values()) / len(others[name]))
    found = estimate(study.differences(second, study.best()))
    said = answer.get("distinguishable")
    if not isinstance(said, bool):
        raise Wrong("distinguishable: say yes or no")
    if said != bool(found.sign):
        raise Wrong(f"distinguishable: look at the interval of {second} minus {study.best()} again")


def check_post_norm(answer: dict) -> None:
    """Twelve layers of post-norm that train."""
    run = opened(answer)
    has(run, model__config__norm_place="post", model__config__n_layer=12)
    at_least(run, 200)
    healthy(run)


EXERCISES = (
    Exercise(
        1,
        "A head that looks back by one",
        "run",
        "Train a model, look at it with `lightning-gpt inspect RUN --out DIR --text ...` and name a head that looks "
        "at the token just before.",
        HEAD_STUB,
        check_head,
        (
            "In its map the bright line runs just below the diagonal.",
            "Such heads stand in the first layers; the title of each map names layer and head.",
        ),
        "head",
    ),
    Exercise(
        1,
        "GPT-2 by hand",
        "measure",
        "Before you ask `lightning-gpt plan model gpt2 --context 1024`: how many parameters has it without embeddings, "
        "and how many operations does a token take? Be within 1%.",
        COUNTS_STUB,
        check_counts,
        (
            "A block has matrices of 4 C^2 (attention) and 8 C^2 (feed-forward); biases and norms are small.",
            "Two operations a weight, those of the head included, and 2 x 2 L T C for scores and their sums.",
        ),
        "gpt2",
        lambda: "without_embeddings: 85056000\nflops_per_token: 2.85e8\n",
    ),
    Exercise(
        2,
        "Eight heads",
        "run",
        "Add a variant 8-heads to a copy of experiments/05_architecture/heads.yaml, run it with three seeds and read "
        "its report.",
        STUDY_STUB,
        check_study,
        (
            "variants: {8-heads: {model.init_args.config.n_head: 8}} beside the others, and seeds: [1, 2, 3].",
            "The report has an interval for each difference; does the one between the best two hold 0?",
        ),
        "eight_heads",
    ),
    Exercise(
        2,
        "Twelve layers of post-norm",
        "run",
        "Make norm_place: post train with 12 layers: 200 steps or more, and `lightning-gpt diagnose` finds nothing.",
        "run:   # the run",
        check_post_norm,
        (
            "Without a warm-up the first blocks lose their gradient: see diagnosis/gradient_depth.",
            "A tenth of the usual rate and a warm-up of half the run are a beginning; then raise the rate.",
        ),
        "post_norm",
    ),
    Exercise(
        3,
        "Causal attention",
        "component",
        "Write attention by hand: no scaled_dot_product_attention. It must equal the reference within 1e-5, and no "
        "output may depend on a later token.",
        ATTENTION_STUB,
        check_attention,
        (
            "Scores are q @ k.transpose(-2, -1) / sqrt(D): (B, H, T, T), rows are queries.",
            "Forbidden scores become -inf before the softmax; zeros after it would leave rows that do not sum to 1.",
            "torch.full((T, T), -torch.inf).triu(1), added to the scores; the softmax runs over the last dimension.",
        ),
        "attention",
        lambda: {"causal_attention": reference_attention},
    ),
    Exercise(
        2,
        "Cut into heads",
        "component",
        "Attention of several heads is attention of one, done side by side on slices of the width. Write the cut and "
        "its inverse.",
        HEADS_STUB,
        check_heads,
        (
            "Two steps: C becomes (H, D), then H changes places with T.",
            "x.view(B, T, H, D).transpose(1, 2). A view to (B, H, T, D) at once mixes positions.",
        ),
        "heads",
        solve_heads,
    ),
    Exercise(
        3,
        "A pre-norm block",
        "component",
        "Put attention, feed-forward and two norms together as GPT-2 does. Where the norms stand decides whether a "
        "deep network trains without warm-up.",
        BLOCK_STUB,
        check_block,
        (
            "The stream itself is never normalised inside a block: only what a branch reads is.",
            "x = x + attention(norm_1(x)), and once more with the other two.",
        ),
        "block",
        lambda: {"pre_norm_block": reference_block},
    ),
)
