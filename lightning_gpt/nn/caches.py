"""The key/value caches, and which one serves where.

A cache is handed to the network with the tokens (`GPT.hidden(..., cache=...)`). There are two ways to lay one out, and
both come in floating types, in int8 and in int4:

| | slots (nn/cache.py) | blocks (nn/paged_cache.py) |
|---|---|---|
| class | KVCache | PagedKVCache, of which each step reads through a PagedStep |
| quantized (nn/quantized_cache.py) | QuantizedKVCache | QuantizedPagedKVCache |
| memory | batch x size positions, taken at once | a pool; requests take blocks as they grow and give them back |
| beginnings that requests share | stored by each | stored once |
| layers with a sliding window | hold `window` positions, whatever the length | hold all, see the window |
| serves | batches that begin together: generation, evaluation, rollouts | the engine: requests that come and go |
| attention | the paths of nn/attention_paths.py | of its own, or a kernel that reads the blocks in place |

KVCache: `length`, `ends`, `dtype`, `nbytes`, `reserve`, `key_positions`, `update`, `select`. PagedKVCache: `blocks`,
`block_size`, `dtype`, `nbytes`, `write`, `read`. `dtype` is that of the keys and values that come out, `nbytes` what is
held, scales included. Both kinds of layout give the logits of a pass without a cache; quantized ones those of a network
whose keys and values are rounded (half a step of 127 or 7 to the largest of a head's numbers, or of 32 of them).

The classes here unpack before they compute, which saves memory, not time. The C++ runner keeps the same numbers and
scales in an order of its own (inference/native_cache.py) and computes on them as they are.
"""

import torch

from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.paged_cache import PagedKVCache
from lightning_gpt.nn.quantized_cache import CacheCode, CacheKind, QuantizedKVCache, QuantizedPagedKVCache

CacheType = torch.dtype | CacheKind
"""In what keys and values are stored."""
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cache_type(name: str) -> CacheType:
    """float32, bfloat16 and float16 as torch's types, int8 and int4 as they are.

    Raises:
        ValueError: another name.
    """
    if name in FLOATS:
        return FLOATS[name]
    return CacheCode(name, head_size=2).kind


def slot_cache(
    config: GPTConfig, batch: int, size: int | None, kind: CacheType, device: torch.device | str = "cpu"
) -> KVCache:
    """An empty KVCache of any type. Quantized ones hand out float32. Arguments as KVCache."""
    if isinstance(kind, torch.dtype):
        return KVCache(config, batch, size, kind, device)
    return QuantizedKVCache(config, batch, size, kind, device=device)


def block_cache(
    config: GPTConfig, blocks: int, block_size: int, kind: CacheType, device: torch.device | str = "cpu"
) -> PagedKVCache:
    """An empty PagedKVCache of any type. Quantized ones hand out float32. Arguments as PagedKVCache."""
    if isinstance(kind, torch.dtype):
        return PagedKVCache(config, blocks, block_size, kind, device)
    return QuantizedPagedKVCache(config, blocks, block_size, kind, device=device)
