"""Keys and values of the C++ runner: blocks as nn/paged_cache.py has them, in an order that suits vectors.

Legend: K key/value heads, P positions in a block, D head width, G groups of a head's numbers.
"""

import torch
from torch import Tensor

from lightning_gpt.nn import GPTConfig

TYPES = (torch.float32, torch.bfloat16, "int8", "int4")
"""In the order of kernels/attention.h."""
LANES, GROUP = 16, 32


class NativeCache:
    """A pool of blocks for every layer, laid out as kernels/attention.h says. int8 and int4 hold the numbers and scales
    of nn/quantized_cache.py.

    Args:
        config: of the network that fills it.
        blocks: how many.
        block_size: P, a multiple of 16.
        dtype: float32, bfloat16, "int8" or "int4".

    Raises:
        ValueError: a size or type that the C++ does not read.
    """

    def __init__(self, config: GPTConfig, blocks: int, block_size: int, dtype: torch.dtype | str) -> None:
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1")
        if block_size < 1 or block_size % LANES:
            raise ValueError(f"block_size={block_size}: the C++ runner reads blocks of a multiple of {LANES} positions")
        if dtype not in TYPES:
            raise ValueError(f"cache type {dtype} is not read by the C++ runner: use {', '.join(map(str, TYPES))}")
        K, P, D = config.kv_heads, block_size, config.head_size
        if dtype == "int4" and D % GROUP:
            raise ValueError(f"an int4 cache has groups of {GROUP} numbers and head_size={D} has none: use int8")
        self.block_size, self.blocks, self.dtype = block_size, blocks, dtype
        number = {"int8": torch.int8, "int4": torch.uint8}.get(dtype, dtype)
        key, value = {
            torch.float32: ((D, P), (P, D)),
            torch.bfloat16: ((D // 2, P, 2), (P // 2, D, 2)),
            "int8": ((D, P), (P, D)),
            "int4": ((D // 2, P), (P, D // 2)),
        }[dtype]
        groups = {"int8": 1, "int4": D // GROUP}.get(dtype, 0)
        shapes = [(key, number), (value, number), ((groups, P), torch.float32), ((P, groups), torch.float32)]
        self.layers: list[list[Tensor]] = [
            [torch.zeros(blocks, K, *shape, dtype=kind) for shape, kind in shapes] for _ in range(config.n_layer)
        ]
        """Of each: keys, values, scales of keys, scales of values."""
        pointers = [tensor.data_ptr() for layer in self.layers for tensor in layer]
        self._pointers = torch.tensor(pointers, dtype=torch.int64)
        self.address = self._pointers.data_ptr()
        """Of the tensors' addresses, layer after layer."""
        self.code = TYPES.index(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held, with the scales."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)
