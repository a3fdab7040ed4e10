"""What computes a step of the engine: the new tokens of many requests in, logits out. Legend: N tokens, C width,
V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.caches import CacheType, block_cache
from lightning_gpt.nn.paged_cache import PagedKVCache, PagedStep, Span


@dataclass(frozen=True)
class StepInput:
    """One step's work: new tokens of several requests, one request after the other."""

    tokens: Sequence[int]
    """N ids."""
    spans: Sequence[Span]
    """The requests' parts of the N tokens, in order, none left out."""
    wanted: Sequence[int]
    """Places among the N tokens after which logits are wanted, ascending."""
    embeds: dict[int, Tensor] = field(default_factory=dict)
    """By place: (C,), read there in place of the token's embedding (pictures)."""


class Runner(Protocol):
    """A network that reads steps into a paged cache. Every request's logits are the same whatever else is in the step
    (up to rounding; a runner says if it is bit for bit)."""

    config: GPTConfig
    device: torch.device

    def make_cache(self, blocks: int, block_size: int = 16, dtype: CacheType | None = None) -> PagedKVCache:
        """An empty cache of the kind that this runner reads; dtype None = what it reads fastest, "int8" and "int4" =
        quantized (nn/quantized_cache.py)."""
        ...

    def forward(self, step: StepInput, cache: PagedKVCache) -> Tensor:
        """Writes the tokens' keys and values into the cache; (len(wanted), V) float32 logits."""
        ...


class TorchRunner:
    """The network itself: every architecture, every device. The readable twin of faster runners.

    Args:
        net: in evaluation mode; its weights may change between steps, as long as no request is under way.
    """

    def __init__(self, net: GPT) -> None:
        self.net, self.config = net, net.config

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.token_embedding.weight.device

    def make_cache(self, blocks: int, block_size: int = 16, dtype: CacheType | None = None) -> PagedKVCache:
        """As Runner. On CPU float32: products of one bfloat16 query with many keys are slower."""
        if dtype is None:
            own = self.net.token_embedding.weight.dtype
            dtype = torch.promote_types(own, torch.float32) if self.device.type == "cpu" else own
        return block_cache(self.config, blocks, block_size, dtype, self.device)

    @torch.inference_mode()
    def forward(self, step: StepInput, cache: PagedKVCache) -> Tensor:
        """As Runner."""
        ids_1N = torch.tensor([step.tokens], dtype=torch.int64, device=self.device)
        embedded_1NC = None
        if step.embeds:
            embedded_1NC = self.net.token_embedding(ids_1N).clone()
            for place, own_C in step.embeds.items():
                embedded_1NC[0, place] = own_C
        hidden_1NC = self.net.hidden(ids_1N, cache=PagedStep(cache, step.spans), embedded_BTC=embedded_1NC)
        return self.net.logits(hidden_1NC[0, torch.tensor(step.wanted, dtype=torch.int64, device=self.device)]).float()
