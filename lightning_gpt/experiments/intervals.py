"""Means of a few runs with Student's t intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t for 1, 2, ... 30 degrees of freedom (any table of the distribution).
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL_975 = 1.959964


def t_quantile_975(degrees: int) -> float:
    """97.5% quantile of Student's t, within 1e-4.

    Args:
        degrees: of freedom, at least 1. Beyond 30 by two terms of the expansion around the normal quantile (Fisher,
            1925).
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _NORMAL_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95% interval."""

    n: int
    mean: float
    half_width: float | None
    """None: one value has no spread."""

    @property
    def sign(self) -> int:
        """-1 or 1 when the interval lies on one side of zero, else 0 (also when there is none)."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return 0
        return -1 if self.mean < 0 else 1

    def text(self, signed: bool = False, digits: int = 4) -> str:
        """ "1.8857 ± 0.0031"."""
        shown = round(self.mean, digits) + 0.0  # no "-0.0000"
        mean = f"{shown:{'+' if signed else ''}.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% t interval of independent values.

    Raises:
        ValueError: no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(n, mean, t_quantile_975(n - 1) * math.sqrt(variance / n))
