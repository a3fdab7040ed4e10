"""What a machine could do at best, measured now: the limits that speeds are shares of."""

import ctypes
import sys
import time
from collections.abc import Callable

import torch

MADV_HUGEPAGE = 14
READ_BYTES = 1 << 28
"""Read to measure bandwidth: more than caches hold."""


def gemm_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 6, device: torch.device | str = "cpu") -> float:
    """Operations/s of a square matrix product now: the best of a few, on a CPU about 0.1 s in all.

    Args:
        dtype: of the factors; int8 adds up in int32.
        size: of the sides; on a GPU four times as large.
        repeats: how many.
        device: where.
    """
    device = torch.device(device)
    size = size if device.type == "cpu" else 4 * size
    generator = torch.Generator().manual_seed(0)  # training draws from the global one
    a, b = (torch.randn(size, size, generator=generator).mul_(8).to(device, dtype) for _ in range(2))
    product = torch._int_mm if dtype == torch.int8 else torch.mm
    return 2 * size**3 / _best_seconds(lambda: product(a, b), repeats, device)


def read_bandwidth(device: torch.device | str = "cpu", repeats: int = 6) -> float:
    """Bytes/s at which memory can be read now: the best of a few sums, on a CPU about 0.2 s in all."""
    device = torch.device(device)
    size = READ_BYTES if device.type == "cpu" else 8 * READ_BYTES
    numbers = torch.empty(size // 4, device=device)
    if device.type == "cpu" and sys.platform == "linux":
        _ask_for_large_pages(numbers)
    numbers.fill_(1)
    return size / _best_seconds(numbers.sum, repeats, device)


def _ask_for_large_pages(fresh: torch.Tensor) -> None:
    """Before anything is written there: to find small pages takes up to a third of the time."""
    large, begin, end = 1 << 21, fresh.data_ptr(), fresh.data_ptr() + fresh.nbytes
    first = -(-begin // large) * large
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t((end - first) // large * large), MADV_HUGEPAGE)


def _best_seconds(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    action()
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
