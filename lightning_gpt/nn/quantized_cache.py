"""Key/value caches in int8 or int4: a half to a seventh of the bytes that a step must read.

Every token has scales of its own for each head, so tokens can come and go one by one: int8 one scale for the head's D
numbers, int4 one for each group of up to 32 of them. Symmetric: number = q * scale, scale = max|number| / 127 or / 7;
so the error of a number is at most half a scale. The network sees the rounded keys and values from the first pass on,
also those of the tokens that it is reading: how a text was cut into steps changes nothing.

Legend: B rows, K key/value heads, S slots, P positions in a block, D head width, G groups, N tokens.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.paged_cache import PagedKVCache

CacheKind = Literal["int8", "int4"]
GROUP = 32
"""Numbers that share a scale in int4, where D is a multiple of it; else the greatest power of two that divides D."""


class CacheCode:
    """How D numbers are stored.

    Args:
        kind: int8: D int8 and a float32 scale. int4: D / 2 uint8, each of two numbers + 8, the even one in the low
            bits, and a float32 scale for each group.
        head_size: D.

    Raises:
        ValueError: an unknown kind, or int4 with an odd head size.
    """

    def __init__(self, kind: CacheKind, head_size: int) -> None:
        if kind not in ("int8", "int4"):
            raise ValueError(f"cache type {kind!r} is unknown: use int8, int4, float32, bfloat16 or float16")
        if kind == "int4" and head_size % 2:
            raise ValueError(f"an int4 cache stores two numbers in a byte and head_size={head_size} is odd: use int8")
        self.kind, self.head_size = kind, head_size
        self.group = head_size if kind == "int8" else math.gcd(head_size, GROUP)
        self.largest = 127 if kind == "int8" else 7
        self.dtype = torch.int8 if kind == "int8" else torch.uint8
        self.width = head_size if kind == "int8" else head_size // 2
        """Stored elements for D numbers."""

    @property
    def nbytes(self) -> int:
        """Of D numbers, with their scales."""
        return self.width + 4 * (self.head_size // self.group)

    def scale_shape(self, *leading: int) -> tuple[int, ...]:
        """Of the scales of (*leading, D) numbers: leading for int8, (*leading, G) for int4."""
        return leading if self.kind == "int8" else (*leading, self.head_size // self.group)

    def quantize(self, numbers_D: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) of any floating type -> stored elements (..., width) and float32 scales (scale_shape)."""
        groups = numbers_D.float().unflatten(-1, (-1, self.group))
        scales = groups.abs().amax(-1) / self.largest
        divisors = scales.clamp(min=torch.finfo(torch.float32).tiny)  # a row of zeros has no scale
        rounded = (groups / divisors[..., None]).round().clamp(-self.largest, self.largest).flatten(-2)
        if self.kind == "int8":
            return rounded.to(torch.int8), scales[..., 0]
        low, high = (rounded + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        return low | high << 4, scales

    def dequantize(self, stored: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Back to (..., D)."""
        if self.kind == "int8":
            return (stored * scales[..., None]).to(dtype)
        numbers = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2).float() - 8
        return (numbers.unflatten(-1, (-1, self.group)) * scales[..., None]).flatten(-2).to(dtype)


class QuantizedKVCache(KVCache):
    """Static slots as KVCache, stored in int8 or int4: keys and values (B, K, S, width), scales (B, K, S) for int8 and
    (B, K, S, G) for int4.

    Args:
        config, batch, size, device: as KVCache.
        kind: see CacheCode.
        dtype: of the keys and values that are handed out, at least.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        size: int | None = None,
        kind: CacheKind = "int8",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, batch, size, dtype, device="meta")  # for its shapes
        self.code, self._dtype = CacheCode(kind, config.head_size), dtype
        shapes = [stored.shape[:3] for stored in self.keys]
        self.keys, self.key_scales = _allocate(self.code, shapes, device)
        self.values, self.value_scales = _allocate(self.code, shapes, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values that are handed out, at least."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes held, with the scales."""
        return super().nbytes + sum(scales.nbytes for scales in (*self.key_scales, *self.value_scales))

    def update(self, layer: int, key_BHTD: Tensor, value_BHTD: Tensor, positions: Tensor | slice):
        """As KVCache; what comes out is rounded, the new tokens' too."""
        dtype = torch.promote_types(self.dtype, key_BHTD.dtype)
        sides = (
            (self.keys[layer], self.key_scales[layer], key_BHTD),
            (self.values[layer], self.value_scales[layer], value_BHTD),
        )
        whole = self._slots[layer] == self.size or key_BHTD.shape[2] == 1
        shown = min(self.length, self._slots[layer])
        found = []
        for stored, scales, new in sides:
            seen = []
            for kept, part in zip((stored, scales), self.code.quantize(new)):
                kept, part = _with_last(kept), _with_last(part)
                if whole:
                    seen.append(self._write(kept, part, positions)[:, :, :shown])
                else:
                    seen.append(self._rotate(kept, part, positions, kept.dtype))
            scale = seen[1].squeeze(-1) if self.code.kind == "int8" else seen[1]
            found.append(self.code.dequantize(seen[0], scale, dtype))
        return tuple(found)

    def select(self, rows: Tensor) -> None:
        """As KVCache."""
        super().select(rows)
        self.key_scales = [scales[rows] for scales in self.key_scales]
        self.value_scales = [scales[rows] for scales in self.value_scales]


class QuantizedPagedKVCache(PagedKVCache):
    """Blocks as PagedKVCache, stored in int8 or int4: keys and values (blocks, K, P, width), scales (blocks, K, P) for
    int8 and (blocks, K, P, G) for int4.

    Args:
        config, blocks, block_size, device: as PagedKVCache.
        kind: see CacheCode.
        dtype: of the keys and values that `read` gives.
    """

    def __init__(
        self,
        config: GPTConfig,
        blocks: int,
        block_size: int = 16,
        kind: CacheKind = "int8",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, blocks, block_size, dtype, device="meta")  # for its shapes
        self.code, self._dtype = CacheCode(kind, config.head_size), dtype
        shapes = [stored.shape[:3] for stored in self.keys]
        self.keys, self.key_scales = _allocate(self.code, shapes, device)
        self.values, self.value_scales = _allocate(self.code, shapes, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values that `read` gives."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes held, with the scales."""
        return super().nbytes + sum(scales.nbytes for scales in (*self.key_scales, *self.value_scales))

    def write(self, layer: int, key_NKD: Tensor, value_NKD: Tensor, blocks_N: Tensor, places_N: Tensor) -> None:
        """As PagedKVCache."""
        sides = (
            (self.keys[layer], self.key_scales[layer], key_NKD),
            (self.values[layer], self.value_scales[layer], value_NKD),
        )
        for stored, scales, new in sides:
            stored[blocks_N, :, places_N], scales[blocks_N, :, places_N] = self.code.quantize(new)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """As PagedKVCache."""
        sides = (self.keys[layer], self.key_scales[layer]), (self.values[layer], self.value_scales[layer])
        return tuple(
            self.code.dequantize(stored[blocks], scales[blocks], self.dtype).transpose(-4, -3).flatten(-3, -2)
            for stored, scales in sides
        )


def _allocate(code: CacheCode, shapes: list[torch.Size], device: torch.device | str) -> tuple[list[Tensor], ...]:
    """Empty elements and scales of every layer."""
    stored = [torch.zeros(*shape, code.width, dtype=code.dtype, device=device) for shape in shapes]
    return stored, [torch.zeros(code.scale_shape(*shape), device=device) for shape in shapes]


def _with_last(part: Tensor) -> Tensor:
    """(B, K, S) scales as (B, K, S, 1), to be written as keys are."""
    return part[..., None] if part.ndim == 3 else part
