"""A checkpoint's state as it is now, in CPU memory, so that training may go on while it is written."""

import copy
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]


class Snapshot:
    """Copies a checkpoint's dictionary into buffers that are kept from one save to the next.

    The buffers are as large as the checkpoint (12 bytes a parameter with AdamW in float32) and page-locked when there
    is a GPU, so that copies run at the bus's speed; to allocate them anew for every save would cost more than to copy.
    """

    def __init__(self) -> None:
        self._buffers: dict[Place, Tensor] = {}
        self._used: dict[Place, Tensor] = {}
        self._copied: dict[Any, Tensor] = {}

    def take(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The copy, good until the next call. Tensors that share memory share it in the copy."""
        self._used, self._copied = {}, {}
        taken = self._copy(checkpoint, ())
        self._buffers, self._used, self._copied = self._used, {}, {}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return taken

    def _copy(self, value: Any, place: Place) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place)
        if isinstance(value, dict):
            return {key: self._copy(item, (*place, key)) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, (*place, index)) for index, item in enumerate(value))
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Tensor, place: Place) -> Tensor:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        key = (local.data_ptr(), local.shape, local.stride(), local.dtype, tensor.shape) if local.numel() else place
        if key in self._copied:
            return self._copied[key]
        buffer = self._buffers.get(place)
        if buffer is None or not _alike(buffer, tensor):
            buffer = _buffer_for(tensor)
        into = buffer.to_local() if hasattr(buffer, "to_local") else buffer
        into.copy_(local, non_blocking=True)
        self._used[place] = self._copied[key] = buffer
        return buffer


def _alike(buffer: Tensor, tensor: Tensor) -> bool:
    same = (buffer.shape, buffer.dtype, buffer.stride()) == (tensor.shape, tensor.dtype, tensor.stride())
    return same and getattr(buffer, "placements", None) == getattr(tensor, "placements", None)


def _buffer_for(tensor: Tensor) -> Tensor:
    """Memory for a copy; of a DTensor, for this rank's part."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
