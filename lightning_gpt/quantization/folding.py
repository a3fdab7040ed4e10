"""Factors on the inputs of a layer, taken out of what computes them, so that the float network stays the same function:
(W s)(x / s) = W x. Legend: K inputs, H query heads, V key/value heads, D head width, F hidden width."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.attention import CausalSelfAttention
from lightning_gpt.nn.blocks import Block
from lightning_gpt.nn.feedforward import FeedForward, GatedFeedForward
from lightning_gpt.nn.moe import MixtureOfExperts
from lightning_gpt.nn.norms import LayerNorm, RMSNorm


@dataclass(frozen=True)
class Fold:
    """How the inputs of one layer can be divided by factors."""

    divide: Callable[[Tensor], None]
    """Divides what computes the inputs by factors (K,)."""
    shared: Tensor | None = None
    """int64 (K,): inputs with the same number must get the same factor; None = each its own."""


def folds(block: Block, config: GPTConfig) -> dict[str, Fold]:
    """The layers of a block whose inputs can be divided, by their name in the block.

    | layer   | divided                     | not where                                                              |
    |---------|-----------------------------|------------------------------------------------------------------------|
    | qkv     | attention_norm              | norm_place=post: the norm's output is the stream itself                |
    | out     | the values' rows of qkv     | value_skip: a later layer mixes in this one's values                   |
    | up      | feed_forward_norm           | norm_place=post, or a mixture of experts, which reads it too           |
    | down    | up, the half without a gate | gelu: act(x / s) is not act(x) / s                                     |
    """
    found = {}
    attention, feed_forward = block.attention, block.feed_forward
    if config.norm_place != "post":
        found["attention.qkv"] = Fold(partial(_divide_norm, block.attention_norm))
        if not isinstance(feed_forward, MixtureOfExperts):
            name = "gate_up" if isinstance(feed_forward, GatedFeedForward) else "up"
            found[f"feed_forward.{name}"] = Fold(partial(_divide_norm, block.feed_forward_norm))
    if not config.value_skip:
        found["attention.out"] = Fold(partial(_divide_values, attention), _heads_of_a_value(attention))
    dense, name = feed_forward, "feed_forward.down"
    kind = config.feed_forward
    if isinstance(feed_forward, MixtureOfExperts):
        dense, name, kind = feed_forward.shared, "feed_forward.shared.down", config.expert_kind
    if isinstance(dense, GatedFeedForward):
        rows = slice(dense.down.in_features, None)
        found[name] = Fold(partial(_divide_rows, dense.gate_up, rows))
    elif isinstance(dense, FeedForward) and kind in ("relu", "relu2"):
        found[name] = Fold(partial(_divide_before_relu, dense.up, 2 if kind == "relu2" else 1))
    return found


def fold_of_head(net: GPT) -> Fold | None:
    """As `folds`, of the head's inputs; None where the network has no last norm."""
    return None if net.config.norm_place == "post" else Fold(partial(_divide_norm, net.final_norm))


@torch.no_grad()
def fold(layer: nn.Linear, how: Fold, factors_K: Tensor) -> None:
    """Multiplies the columns of a layer, and divides its inputs."""
    how.divide(factors_K)
    layer.weight *= factors_K


def _divide_norm(norm: nn.Module, factors: Tensor) -> None:
    norm.weight /= factors
    if getattr(norm, "bias", None) is not None:
        norm.bias /= factors


def _divide_rows(layer: nn.Linear, rows: slice, factors: Tensor) -> None:
    layer.weight[rows] /= factors[:, None]
    if layer.bias is not None:
        layer.bias[rows] /= factors


def _divide_before_relu(layer: nn.Linear, power: int, factors: Tensor) -> None:
    """relu(x / s)^power = relu(x)^power / s^power for s > 0."""
    _divide_rows(layer, slice(None), factors ** (1 / power))


def _divide_values(attention: CausalSelfAttention, factors: Tensor) -> None:
    """A value's numbers are weighted and summed, each for itself: what they are divided by comes out of the heads."""
    H, V, D = attention.heads, attention.kv_heads, attention.head_size
    first_of_group = factors.view(V, H // V, D)[:, 0].reshape(-1)
    _divide_rows(attention.qkv, slice((H + V) * D, None), first_of_group)


def _heads_of_a_value(attention: CausalSelfAttention) -> Tensor | None:
    """Which number of the values each of the H D inputs of `out` stems from; None when each has its own."""
    H, V, D = attention.heads, attention.kv_heads, attention.head_size
    if H == V:
        return None
    return torch.arange(V * D).view(V, 1, D).expand(V, H // V, D).reshape(-1)


def give_gains(net: GPT) -> None:
    """Norms without gain get one of ones (and shifts of zeros where the configuration has them), to fold into."""
    if net.config.norm_affine:
        return
    net.config = replace(net.config, norm_affine=True)
    like = net.token_embedding.weight
    for norm in net.modules():
        if isinstance(norm, LayerNorm | RMSNorm):
            norm.weight = nn.Parameter(torch.ones(net.config.n_embd, dtype=like.dtype, device=like.device))
            if isinstance(norm, LayerNorm) and net.config.bias:
                norm.bias = nn.Parameter(torch.zeros_like(norm.weight))
