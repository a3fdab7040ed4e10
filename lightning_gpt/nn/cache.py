"""The key/value cache: what earlier tokens need not be computed for again."""

import torch
from torch import Tensor

from lightning_gpt.nn.config import GPTConfig


class KVCache:
    """Static slots: keys and values of every layer for up to `size` positions of `batch` rows.

    Legend: B rows, H key/value heads, S slots, D head width, W window of a layer, T new tokens.

    A layer that sees everything has a slot for every position: slot = position. Rows may be ragged: right-padded
    prompts write rubbish behind their end, which is masked until real tokens overwrite it. A layer with a sliding
    window has W slots and takes them in turn (slot = position mod W), so its memory does not grow with the text; there
    rubbish would overwrite what is still seen, so `ends` says where each row ends.

    Args:
        config: of the network that will fill it.
        batch: B.
        size: how many positions; at most config.block_size are ever used.
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
        self._slots = [self._slots_of(window) for window in config.windows]
        shapes = [(batch, config.kv_heads, slots, config.head_size) for slots in self._slots]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.length = 0
        """Positions in use by the longest row."""
        self.ends: Tensor | None = None
        """(B,) int64: tokens of the next call at these positions and behind are padding. None = all are real."""

    def _slots_of(self, window: int | None) -> int:
        return self.size if window is None else min(window, self.size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self.keys[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def reserve(self, start: int, count: int) -> None:
        """Announces that positions start .. start + count - 1 are about to be written.

        Raises:
            ValueError: beyond the cache.
        """
        if start + count > self.size:
            raise ValueError(
                f"position {start + count - 1} is beyond the cache of {self.size} positions: "
                "shorten the prompt or ask for fewer new tokens"
            )
        self.length = max(self.length, start + count)

    def key_positions(self, window: int | None, positions: Tensor | slice) -> Tensor:
        """Positions of the keys that `update` returns for a layer of this window: (S,), or (B, S) when rows differ;
        negative = nothing is there yet."""
        device, slots = self.keys[0].device, self._slots_of(window)
        if slots == self.size:
            return torch.arange(self.length, device=device)
        if isinstance(positions, slice):
            first, count = positions.start, positions.stop - positions.start
            new = torch.arange(first, positions.stop, device=device)
        else:
            first, count, new = positions[:, :1], positions.shape[1], positions
        slot = torch.arange(min(self.length, slots) if count == 1 else slots, device=device)
        if count == 1:
            return first - (first - slot) % slots
        if isinstance(first, int) and first == 0:
            return new
        old = first - 1 - (first - 1 - slot) % slots
        return torch.cat((old, new), dim=-1)

    def update(self, layer: int, key_BHTD: Tensor, value_BHTD: Tensor, positions: Tensor | slice):
        """Stores new keys and values and returns all (B, H, S, D) that the new tokens may see, in the wider of the
        cache's type and theirs: a float32 cache makes attention float32.

        Args:
            layer: which layer.
            key_BHTD, value_BHTD: of the new tokens.
            positions: (B, T) int64, consecutive in each row, or a slice shared by the batch.
        """
        stored, given = (self.keys[layer], self.values[layer]), (key_BHTD, value_BHTD)
        dtype = torch.promote_types(self.dtype, key_BHTD.dtype)
        if self._slots[layer] == self.size or key_BHTD.shape[2] == 1:
            shown = min(self.length, self._slots[layer])
            return tuple(self._write(old, new, positions)[:, :, :shown].to(dtype) for old, new in zip(stored, given))
        return tuple(self._rotate(old, new, positions, dtype) for old, new in zip(stored, given))

    @staticmethod
    def _write(stored: Tensor, new: Tensor, positions: Tensor | slice) -> Tensor:
        """Each new token into its slot."""
        slots = stored.shape[2]
        if isinstance(positions, slice):
            start = positions.start % slots
            stored[:, :, start : start + new.shape[2]] = new.to(stored.dtype)
        else:
            index = (positions % slots)[:, None, :, None].expand_as(new)
            stored.scatter_(2, index, new.to(stored.dtype))
        return stored

    def _rotate(self, stored: Tensor, new: Tensor, positions: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Several tokens into the slots of a window: what they see is what was there and themselves; kept are the
        last W real ones of each row."""
        slots, device = stored.shape[2], stored.device
        if isinstance(positions, slice):
            first = torch.tensor([[positions.start]], device=device)
            end = torch.tensor([[positions.stop]], device=device)
            fresh = positions.start == 0
        else:
            first, end, fresh = positions[:, :1], positions[:, -1:] + 1, False
        if self.ends is not None:
            end = torch.minimum(end, self.ends[:, None])
        seen = new.to(dtype) if fresh else torch.cat((stored.to(dtype), new.to(dtype)), dim=2)
        kept = end - 1 - (end - 1 - torch.arange(slots, device=device)) % slots  # (B or 1, W): position of each slot
        index = (kept - first).clamp(min=0)[:, None, :, None].expand(*new.shape[:2], slots, new.shape[3])
        stored.copy_(torch.where((kept >= first)[:, None, :, None], new.gather(2, index).to(stored.dtype), stored))
        return seen

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (B') int64, in that order: finished rows of a batch are dropped."""
        self.keys = [tensor[rows] for tensor in self.keys]
        self.values = [tensor[rows] for tensor in self.values]
