"""Keeps freed memory in the process: on CPU a training step otherwise returns and re-faults its pages each time."""

import ctypes
import ctypes.util
import sys

# Parameter numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from the heap and to keep the heap; whether it could be told.

    Tensors of a step are of the same sizes as those of the step before, so the heap does not grow after the first.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library: nothing to tune
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(mallopt(parameter, value) for parameter, value in settings)
