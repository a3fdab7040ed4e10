"""Sizes of memory as people write them."""

import math
import re

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_memory(text: str) -> int:
    """ "24GiB" -> 25769803776, "80GB" -> 80000000000.

    Raises:
        ValueError: no number with a unit, or no memory at all.
    """
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"memory={text!r} must be a number with a unit, such as 24GiB or 80GB")
    amount = float(match[1])
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"memory={text!r} must be positive")
    return int(amount * UNITS[match[2].upper()])
