"""Exercises of 05, architecture."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, same, untouched

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


SINUSOIDS_STUB = '''
import torch


def sinusoids(positions, width):
    """The table of Vaswani et al. (2017): column 2i holds sin(t / 10000^(2i / width)), column 2i + 1 its cosine.

    Args:
        positions: how many.
        width: even.

    Returns:
        (positions, width), float32.
    """
    raise NotImplementedError


if __name__ == "__main__":
    table = sinusoids(4, 6)
    assert table.shape == (4, 6)
    assert torch.allclose(table[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    print("as far as this goes, right; now: lightning-gpt learn check THIS")
'''


def check_sinusoids(answer: Any) -> None:
    """Against SinusoidalTable."""
    from lightning_gpt.nn.positions import SinusoidalTable

    table = function(answer, "sinusoids")
    for positions, width in ((1, 2), (7, 6), (100, 16)):
        wanted = SinusoidalTable(width, positions).weight
        same(f"sinusoids({positions}, {width})", table(positions, width), wanted, 2e-5)


def solve_sinusoids() -> dict:
    """Of nn/positions.py."""
    from lightning_gpt.nn.positions import SinusoidalTable

    return {"sinusoids": lambda positions, width: SinusoidalTable(width, positions).weight}


def check_counts(answer: dict) -> None:
    """What the number of heads changes, and what it does not."""
    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.flops import attention_matrix_parameters, feed_forward_matrix_parameters, parameters

    shape = {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_embd": 128, "bias": False}
    one, sixteen = (GPTConfig(n_head=heads, **shape) for heads in (1, 16))
    close("parameters_1_head", answer.get("parameters_1_head"), parameters(one), 1e-9)
    close("parameters_16_heads", answer.get("parameters_16_heads"), parameters(sixteen), 1e-9)
    attention, feed = attention_matrix_parameters(one), feed_forward_matrix_parameters(one, 0)
    close("attention_share", answer.get("attention_share"), attention / (attention + feed), 0.01)
    equal("scores_per_head_grow_with", answer.get("scores_per_head_grow_with"), "T^2")


COUNTS_STUB = """
parameters_1_head:      # a whole number
parameters_16_heads:    # a whole number
attention_share:        # of the weights of one block's matrices, between 0 and 1
scores_per_head_grow_with:   # T, T^2 or D, T being the context's length
"""


EXERCISES = (
    Exercise(
        "05.1",
        1,
        "What the number of heads changes",
        "measure",
        "A network of 4 layers, width 128, context 64, 65 characters, no biases, tied head, learned positions: fill in "
        "its parameters with 1 head and with 16, attention's share of a block, and what its scores grow with. "
        "`lightning-gpt plan model PRESET` shows how such a table looks.",
        COUNTS_STUB,
        check_counts,
        (
            "Queries, keys and values are three C x C matrices, whatever they are cut into; the output is a fourth.",
            "The feed-forward has two matrices of C x 4C. Each block has two norms of C, and a last one follows.",
            "Each head compares every position with every position.",
        ),
        "counts",
        lambda: (
            "parameters_1_head: 804096\nparameters_16_heads: 804096\nattention_share: 0.3333\n"
            "scores_per_head_grow_with: T^2\n"
        ),
    ),
    Exercise(
        "05.2",
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
        "05.3",
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
        "05.4",
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
    Exercise(
        "05.5",
        2,
        "Sinusoidal positions",
        "component",
        "Attention does not know the order of its inputs. Write the table that Vaswani et al. add to the embeddings.",
        SINUSOIDS_STUB,
        check_sinusoids,
        (
            "A sine and a cosine share a frequency: there are width / 2 frequencies.",
            "torch.arange(positions)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width); sines: [:, 0::2].",
        ),
        "sinusoids",
        solve_sinusoids,
    ),
)
