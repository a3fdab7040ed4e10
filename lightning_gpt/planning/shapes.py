"""From a number of parameters to layers, width, heads and feed-forward, in the proportions of published networks."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Literal

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.config import GATED
from lightning_gpt.nn.flops import body_parameters, parameters
from lightning_gpt.nn.presets import PRESETS
from lightning_gpt.planning.laws import Count

Style = Literal["llama", "gpt"]
MODELS: dict[str, tuple[str, ...]] = {
    "llama": ("tiny-llama", "llama-125m", "llama3.2-1b", "llama-7b", "llama-13b", "llama-33b", "llama-65b"),
    "gpt": ("tiny-gpt2", "gpt2", "gpt3-760m", "gpt3-1.3b", "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b", "gpt3-175b"),
}
"""Presets whose width per layer a style follows, between them over the logarithm of the size."""
VOCABULARIES = {"llama": (256, 1024, 4096, 16384, 32000), "gpt": (256, 1024, 4096, 16384, 50257)}
EMBEDDING_SHARE = 1 / 3
"""Without a given vocabulary it is the largest whose embedding takes no more of the parameters."""
TIED_BELOW = 2e9
"""Parameters below which a llama's head shares the embedding, as LLaMA 3.2 1B's does and LLaMA 7B's does not."""
TOLERANCE = 0.03
"""How far the exact count may lie from what was asked for."""
WIDEST = 0.2
"""By which share a feed-forward may differ from the usual to meet a size."""
SMALLEST = 1e4
DEEPEST = 200
"""Layers at most."""


def aspect_ratio(style: Style, size: float) -> float:
    """Width per layer of a style at a number of parameters without embeddings."""
    points = _proportions(style)
    at = math.log(size)
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


@cache
def _proportions(style: Style) -> list[tuple[float, float]]:
    """(log of the parameters without embeddings, width per layer) of a style's presets, ascending."""
    configs = map(PRESETS.__getitem__, MODELS[style])
    return sorted((math.log(body_parameters(config)), config.n_embd / config.n_layer) for config in configs)


def count_parameters(config: GPTConfig, count: Count) -> int:
    """Exactly, with embeddings ("all") or without ("body")."""
    return parameters(config) if count == "all" else body_parameters(config)


def head_width(n_embd: int) -> int:
    """Of one head: 128 in wide networks (LLaMA), 64 in GPT-2's, less in toys."""
    for width, head in ((2048, 128), (256, 64), (128, 32)):
        if n_embd >= width:
            return head
    return 16


def default_context(size: float) -> int:
    """Tokens of a window where none is asked for."""
    return 256 if size < 1e7 else 1024 if size < 1e9 else 2048


def find_shape(
    size: float, style: Style = "llama", vocab: int | None = None, context: int | None = None, count: Count = "all"
) -> GPTConfig:
    """The network nearest in size among those near the style's proportions.

    Args:
        size: parameters that are wanted.
        style: llama (rotary positions, RMSNorm, SwiGLU of about 8/3, no biases) or gpt (GPT-2's parts, feed-forward of
            about 4).
        vocab: ids of the vocabulary; None = by size, see VOCABULARIES.
        context: tokens of a window; None = by size.
        count: what `size` counts.

    Raises:
        ValueError: no shape lies within TOLERANCE: too small for the vocabulary, or at all.
    """
    if not (math.isfinite(size) and size >= SMALLEST):
        raise ValueError(f"params={size:g}: shapes start at {SMALLEST:g} parameters")
    if style not in MODELS:
        raise ValueError(f"style={style!r} is unknown: use one of {', '.join(MODELS)}")
    for name, value in (("vocab", vocab), ("context", context)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    base = PRESETS["llama-125m" if style == "llama" else "gpt2"]
    tied = style == "gpt" or size < TIED_BELOW
    base = replace(base, block_size=context or default_context(size), tie_embeddings=tied, ffn_multiple=8)
    vocabularies = [vocab] if vocab else sorted(VOCABULARIES[style], reverse=True)
    nearest = None
    for ids in vocabularies:
        found = _nearest(replace(base, vocab_size=ids), size, style, count)
        if found is None:
            continue
        error = abs(count_parameters(found, count) / size - 1)
        share = ids * found.n_embd / parameters(found)
        if error <= TOLERANCE and (vocab or share <= EMBEDDING_SHARE or ids == vocabularies[-1]):
            return found
        nearest = min(nearest or (error, found), (error, found), key=lambda pair: pair[0])
    what = f"{count_parameters(nearest[1], count):,.0f} parameters" if nearest else "none"
    raise ValueError(
        f"params={size:g}: no {style} shape with a vocabulary of {vocab or vocabularies[-1]:,} lies within "
        f"{TOLERANCE:.0%} of it (nearest: {what}): give a smaller --vocab or more parameters"
    )


def _nearest(base: GPTConfig, size: float, style: Style, count: Count) -> GPTConfig | None:
    """Least of (error of the size / 1%)^2 + (skew of width per layer / 0.3)^2 + (skew of the feed-forward / 0.1)^2,
    skews in logarithms."""
    best, least = None, math.inf
    for layers in range(1, DEEPEST + 1):
        for config, usual in _of_depth(base, layers, size, count):
            error = math.log(count_parameters(config, count) / size) / 0.01
            aspect = config.n_embd / layers / aspect_ratio(style, body_parameters(config))
            cost = error**2 + (math.log(aspect) / 0.3) ** 2 + (math.log(config.hidden_size / usual) / 0.1) ** 2
            if cost < least:
                best, least = config, cost
    return best


def _of_depth(base: GPTConfig, layers: int, size: float, count: Count) -> list[tuple[GPTConfig, int]]:
    """Networks of so many layers near a size, and the usual feed-forward of each: the two widths around the solution of
    12 layers width^2 + rows width = size, rows of the embeddings, as they are and with a feed-forward that makes up for
    what is missing."""
    rows = 0.0
    if count == "all":
        rows = base.vocab_size * (1 if base.tie_embeddings else 2)
        rows += base.block_size if base.position == "learned" else 0
    width = (math.sqrt(rows**2 + 48 * layers * size) - rows) / (24 * layers)
    head = head_width(round(width))
    step = 2 * head if width >= 512 else head  # an even number of heads divides over devices
    found = []
    for w in {max(1, math.floor(width / step)) * step, math.ceil(width / step) * step}:
        config = replace(base, n_layer=layers, n_embd=w, n_head=w // head, ffn_multiple=min(64, head))
        usual = config.hidden_size
        matrices = 3 if config.feed_forward in GATED else 2
        missing = (size - count_parameters(config, count)) / (layers * matrices * w)
        multiple = config.ffn_multiple
        hidden = round((usual + missing) / multiple) * multiple
        found.append((config, usual))
        if abs(hidden / usual - 1) <= WIDEST:
            found.append((replace(config, ffn_hidden=hidden), usual))
    return found
