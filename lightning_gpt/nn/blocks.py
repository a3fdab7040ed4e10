"""One layer: attention and feed-forward around the residual stream; norms before, after or on both sides."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gpt.nn.attention import CausalSelfAttention, Pass
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.feedforward import build_dense
from lightning_gpt.nn.moe import MixtureOfExperts
from lightning_gpt.nn.norms import NORMS


def build_norm(config: GPTConfig) -> nn.Module:
    """The normalisation that the configuration names."""
    return NORMS[config.norm](config.n_embd, config.norm_eps, config.norm_affine, config.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm, as GPT-2 and LLaMA."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = CausalSelfAttention(config, layer)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = (
            MixtureOfExperts(config)
            if config.is_mixture(layer)
            else build_dense(config, config.hidden_size, config.feed_forward)
        )
        self.dropout = config.dropout
        self.multiplier = config.residual_multiplier
        self.input_mix = nn.Parameter(torch.tensor([1.0, 0.0])) if config.input_skip else None

    def forward(
        self, x_BTC: Tensor, shared: Pass, embedding_BTC: Tensor, first_value: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the attention's values.

        Args:
            x_BTC: the residual stream.
            shared: of this forward pass.
            embedding_BTC: the stream before the first block.
            first_value: the first layer's values; None in it.
        """
        if self.input_mix is not None:
            own, embedded = self.input_mix.to(x_BTC.dtype)
            x_BTC = own * x_BTC + embedded * embedding_BTC
        return self.branches(x_BTC, shared, first_value)

    def branches(self, x_BTC: Tensor, shared: Pass, first_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both branches, added."""
        branch, value = self.attention(self.attention_norm(x_BTC), shared, first_value)
        x_BTC = self.add(x_BTC, branch)
        return self.add(x_BTC, self.feed(self.feed_forward_norm(x_BTC), shared)), value

    def feed(self, x_BTC: Tensor, shared: Pass) -> Tensor:
        """The feed-forward. Experts drop no token of a pass with a cache: the same text would come out differently when
        it is read in other pieces, or beside others."""
        if shared.cache is not None and isinstance(self.feed_forward, MixtureOfExperts):
            return self.feed_forward(x_BTC, keep_all=True)
        return self.feed_forward(x_BTC)

    def add(self, x_BTC: Tensor, branch: Tensor) -> Tensor:
        """The residual sum."""
        if self.dropout and self.training:
            branch = F.dropout(branch, self.dropout)
        return x_BTC + (branch if self.multiplier == 1 else self.multiplier * branch)


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed_forward(x)) (Vaswani et al., 2017; GPT-1)."""

    def branches(self, x_BTC: Tensor, shared: Pass, first_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both branches, each sum normalised."""
        branch, value = self.attention(x_BTC, shared, first_value)
        x_BTC = self.attention_norm(self.add(x_BTC, branch))
        return self.feed_forward_norm(self.add(x_BTC, self.feed(x_BTC, shared))), value


class SandwichBlock(Block):
    """x + norm(attention(norm(x))), then x + norm(feed_forward(norm(x))) (Ding et al., 2021; Gemma 2)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attention_out_norm = build_norm(config)
        self.feed_forward_out_norm = build_norm(config)

    def branches(self, x_BTC: Tensor, shared: Pass, first_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both branches, each normalised before it is added."""
        branch, value = self.attention(self.attention_norm(x_BTC), shared, first_value)
        x_BTC = self.add(x_BTC, self.attention_out_norm(branch))
        branch = self.feed_forward_out_norm(self.feed(self.feed_forward_norm(x_BTC), shared))
        return self.add(x_BTC, branch), value


class ParallelBlock(Block):
    """x + attention(norm(x)) + feed_forward(norm'(x)) (Wang & Komatsuzaki, 2021; GPT-NeoX, with two norms)."""

    def branches(self, x_BTC: Tensor, shared: Pass, first_value: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both branches of one input, added together."""
        branch, value = self.attention(self.attention_norm(x_BTC), shared, first_value)
        return self.add(self.add(x_BTC, branch), self.feed(self.feed_forward_norm(x_BTC), shared)), value


BLOCKS: dict[str, type[Block]] = {"pre": Block, "post": PostNormBlock, "sandwich": SandwichBlock}


def build_block(config: GPTConfig, layer: int) -> Block:
    """The block that the configuration names."""
    return (ParallelBlock if config.parallel_residual else BLOCKS[config.norm_place])(config, layer)
