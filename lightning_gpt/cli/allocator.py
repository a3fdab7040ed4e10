"""Keeps freed memory in the process: on CPU a training step otherwise returns and re-faults its pages each time."""

import ctypes
import ctypes.util
import sys

# Parameter numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from the heap and to keep the heap; whether it could be told.

    Tensors of a step are of the same sizes as those of the step before, so the heap does not grow after the first.
    """
    return _tell((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))


def return_large_blocks() -> bool:
    """Takes that back for blocks from 256 KiB on; whether glibc could be told.

    For sharded training, whose steps gather and free weights and gradients of many sizes: between blocks that last they
    leave gaps that nothing fits, and a process comes to hold nearly twice what it needs.
    """
    return _tell((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 256 << 10))


def _tell(*settings: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library: nothing to tune
    return all(mallopt(parameter, value) for parameter, value in settings)
