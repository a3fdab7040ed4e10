"""What the host's memory can hold in place of a GPU's: saved activations, and a sharded network with its states."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

SMALLEST = 1 << 16
"""Bytes below which moving a tensor takes longer than it is worth."""


@contextmanager
def moved(own: set[int], shapes: set[tuple[int, ...]], host: torch.device, pin: bool) -> Iterator[None]:
    """Keeps what autograd saves on `host` until the backward pass asks for it.

    Args:
        own: addresses of storages that stay where they are: parameters, which are there anyway.
        shapes: tensors of these shapes stay too: autocast's copies of the parameters.
        host: where to.
        pin: page-locked memory, which copies without waiting; the stream keeps the order.
    """

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        small = tensor.nbytes < SMALLEST
        if small or tensor.untyped_storage().data_ptr() in own or tuple(tensor.shape) in shapes:
            return tensor
        there = torch.empty_like(tensor, device=host, pin_memory=pin)
        return tensor.device, there.copy_(tensor, non_blocking=pin)

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, there = packed
        return there.to(device, non_blocking=pin)

    with saved_tensors_hooks(pack, unpack):
        yield


def host_memory(forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """What this module's forward saves goes to the host's memory; on CPU it is there already."""
    parameters = list(forward.__self__.parameters())
    if parameters[0].device.type == "cpu":
        return nullcontext()
    shapes = {shape for one in parameters for shape in (tuple(one.shape), tuple(one.shape[::-1]))}
    own = {one.untyped_storage().data_ptr() for one in parameters}
    return moved(own, shapes, torch.device("cpu"), pin=True)


def offload_policy(offload: bool, device: torch.device) -> OffloadPolicy:
    """Of fully_shard: whether sharded weights, gradients and optimizer states live in the host's memory, from where
    blocks are copied to the GPU when they are gathered; the optimizer then steps on the CPU (Ren et al., 2021,
    arXiv:2101.06840).

    On CPU they are there already; the policy is then the same without page-locked memory.
    """
    return CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy()
