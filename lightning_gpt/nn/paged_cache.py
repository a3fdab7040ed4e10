"""Keys and values in blocks that requests take and give back (Kwon et al., 2023, PagedAttention).

Legend: N tokens of a step, H query heads, K key/value heads, S keys, D head width, P positions in a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.nn.attention_paths import plain_attention
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.masks import attention_mask


@dataclass(frozen=True)
class Span:
    """The new tokens of one request in a step: they stand side by side."""

    start: int
    """Where they begin among the step's tokens."""
    count: int
    past: int
    """Tokens of the request that the cache has already: the new ones stand at past, past + 1, ..."""
    blocks: Sequence[int]
    """Blocks of the request in order: position p is in blocks[p // P], at p % P. Several requests may name the same
    block where they begin alike; only blocks that no other names are written to."""


class PagedKVCache:
    """A pool of blocks for every layer; who has which is decided elsewhere (inference/block_pool.py).

    Args:
        config: of the network that fills it.
        blocks: how many.
        block_size: P.
        dtype: of the stored keys and values.
        device: where they live.
    """

    def __init__(
        self,
        config: GPTConfig,
        blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"blocks={blocks} and block_size={block_size} must be at least 1")
        self.block_size = block_size
        shape = (blocks, config.kv_heads, block_size, config.head_size)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self.keys[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self.keys[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def write(self, layer: int, key_NKD: Tensor, value_NKD: Tensor, blocks_N: Tensor, places_N: Tensor) -> None:
        """Stores one key and value for each token.

        Args:
            blocks_N, places_N: int64, which block and which place in it.
        """
        self.keys[layer][blocks_N, :, places_N] = key_NKD.to(self.dtype)
        self.values[layer][blocks_N, :, places_N] = value_NKD.to(self.dtype)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks, (..., K, M P, D) for blocks (..., M) int64."""
        K, P, D = self.keys[layer].shape[1:]
        # The rows of all heads and blocks in the order in which they are wanted: copied once, and not turned about.
        rows = blocks[..., None, :] * K + torch.arange(K, device=blocks.device)[:, None]
        shape = (*blocks.shape[:-1], K, blocks.shape[-1] * P, D)
        parts = (self.keys[layer], self.values[layer])
        return tuple(stored.view(-1, P * D).index_select(0, rows.flatten()).view(shape) for stored in parts)


class PagedStep:
    """What one step does with the cache: many requests' new tokens in one row, each seeing its own request only.

    The network is given all N tokens as a batch of one row, their positions, and this as its cache; it computes
    attention here. Requests with one new token are read together, others one by one: the readable form of
    inference/kernels.

    Args:
        cache: the pool.
        spans: of the N tokens, none left out.
    """

    def __init__(self, cache: PagedKVCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        device = cache.keys[0].device
        P = cache.block_size
        places = [(span.blocks[p // P], p % P, p) for span in spans for p in range(span.past, span.past + span.count)]
        self._blocks_N, self._places_N, positions_N = torch.tensor(places, dtype=torch.int64, device=device).unbind(-1)
        self.positions = positions_N[None]
        """(1, N) int64."""
        self._long = [span for span in spans if span.count > 1]
        single = [span for span in spans if span.count == 1]
        self._rows_B = torch.tensor([span.start for span in single], dtype=torch.int64, device=device)
        self._past_B1 = torch.tensor([[span.past] for span in single], dtype=torch.int64, device=device)
        used = [list(span.blocks[: span.past // P + 1]) for span in single]
        most = max(map(len, used), default=0)
        filled = [blocks + [blocks[0]] * (most - len(blocks)) for blocks in used]
        self._tables_BM = torch.tensor(filled, dtype=torch.int64, device=device).view(len(single), most)

    @property
    def dtype(self) -> torch.dtype:
        """In which attention is computed at least."""
        return self.cache.dtype

    def attend(
        self,
        layer: int,
        q_1HND: Tensor,
        k_1KND: Tensor,
        v_1KND: Tensor,
        scale: float,
        window: int | None = None,
        slopes_H: Tensor | None = None,
        softcap: float | None = None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """Stores the new keys and values and computes attention: (1, H, N, D) in the type of the queries.

        Arguments as in plain_attention and attention_mask.
        """
        cache, dtype = self.cache, torch.promote_types(q_1HND.dtype, self.cache.dtype)
        cache.write(layer, k_1KND[0].transpose(0, 1), v_1KND[0].transpose(0, 1), self._blocks_N, self._places_N)
        y_1HND = torch.empty_like(q_1HND)
        rest = {"scale": scale, "dropout": 0.0, "softcap": softcap, "sinks_H": sinks_H}
        if len(self._rows_B):
            k, v = (part.to(dtype) for part in cache.read(layer, self._tables_BM))
            keys = torch.arange(k.shape[-2], device=k.device)
            mask = attention_mask(self._past_B1, keys, dtype, window, slopes_H)
            q_BH1D = q_1HND[0, :, self._rows_B].transpose(0, 1)[:, :, None].to(dtype)
            y_BH1D = plain_attention(q_BH1D, k, v, mask, **rest)
            y_1HND[0, :, self._rows_B] = y_BH1D[:, :, 0].transpose(0, 1).to(y_1HND.dtype)
        for span in self._long:
            stop, end = span.start + span.count, span.past + span.count
            blocks = torch.tensor(span.blocks[: -(-end // cache.block_size)], device=y_1HND.device)
            k, v = (part[None, :, :end].to(dtype) for part in cache.read(layer, blocks))
            keys = torch.arange(end, device=k.device)
            mask = attention_mask(keys[span.past :], keys, dtype, window, slopes_H)
            q = q_1HND[:, :, span.start : stop].to(dtype)
            y_1HND[:, :, span.start : stop] = plain_attention(q, k, v, mask, **rest).to(y_1HND.dtype)
        return y_1HND
