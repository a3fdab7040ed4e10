"""The key/value cache: what earlier tokens need not be computed for again."""

import torch
from torch import Tensor

from lightning_gpt.nn.config import GPTConfig


class KVCache:
    """Static slots: keys and values of every layer for up to `size` positions of `batch` rows.

    Legend: L layers, B rows, H key/value heads, S slots, D head width. A slot's index is the token's position, so
    rows may be ragged: right-padded prompts write rubbish behind their end, which is masked until real tokens
    overwrite it.

    Args:
        config: of the network that will fill it.
        batch: B.
        size: S; at most config.block_size positions are ever used.
        dtype: of the stored keys and values.
        device: where they live.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = min(size or config.block_size, config.block_size)
        shape = (config.n_layer, batch, config.kv_heads, self.size, config.head_size)
        self.key_LBHSD = torch.zeros(shape, dtype=dtype, device=device)
        self.value_LBHSD = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        """Slots in use by the longest row."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self.key_LBHSD.dtype

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 2 * self.key_LBHSD.nbytes

    def reserve(self, start: int, count: int) -> None:
        """Announces that slots start .. start + count - 1 are about to be written.

        Raises:
            ValueError: beyond the cache.
        """
        if start + count > self.size:
            raise ValueError(
                f"position {start + count - 1} is beyond the cache of {self.size} positions: "
                "shorten the prompt or ask for fewer new tokens"
            )
        self.length = max(self.length, start + count)

    def update(self, layer: int, key_BHTD: Tensor, value_BHTD: Tensor, positions: Tensor | slice):
        """Stores new keys and values and returns all (B, H, length, D) up to the longest row, in the wider of the
        cache's type and theirs: a float32 cache makes attention float32.

        Args:
            layer: which layer.
            key_BHTD, value_BHTD: of the new tokens.
            positions: (B, T) int64, or a slice shared by the batch.
        """
        keys, values = self.key_LBHSD[layer], self.value_LBHSD[layer]
        if isinstance(positions, slice):
            keys[:, :, positions] = key_BHTD.to(keys.dtype)
            values[:, :, positions] = value_BHTD.to(values.dtype)
        else:
            index = positions[:, None, :, None].expand_as(key_BHTD)
            keys.scatter_(2, index, key_BHTD.to(keys.dtype))
            values.scatter_(2, index, value_BHTD.to(values.dtype))
        dtype = torch.promote_types(keys.dtype, key_BHTD.dtype)
        return keys[:, :, : self.length].to(dtype), values[:, :, : self.length].to(dtype)

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (B') int64, in that order: finished rows of a batch are dropped."""
        self.key_LBHSD = self.key_LBHSD[:, rows]
        self.value_LBHSD = self.value_LBHSD[:, rows]
