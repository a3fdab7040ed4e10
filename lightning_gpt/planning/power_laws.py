"""Straight lines in logarithms: L(N) of the longest runs and L(D) of the largest network (Kaplan et al., 2020, 1.1 and
1.2), with Student's intervals.

They have no E and no limit of the other quantity, so they hold only as far as neither shows: their exponents come out
smaller the nearer the runs are to either.
"""

import math
from dataclasses import dataclass

import numpy as np

SAME = 0.05
"""Sizes or token counts within this share of one another are one."""


@dataclass(frozen=True)
class PowerLaw:
    """y = (scale / x)^exponent over x, exponents with 95% intervals."""

    of: str
    """What x is."""
    at: str
    """Where the other quantity was held."""
    scale: float
    exponent: float
    low: float
    high: float
    points: int

    def __call__(self, x):
        """y."""
        return (self.scale / x) ** self.exponent


def fit_power_law(x, y, of: str = "x", at: str = "") -> PowerLaw | None:
    """Least squares of log y over log x; None with fewer than three different x, or where y hardly depends on x.

    Args:
        x: (n).
        y: (n).
        of: name of x.
        at: where the other quantity was held.
    """
    from scipy.stats import linregress, t

    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    if len(set(np.round(log_x, 3))) < 3:
        return None
    line = linregress(log_x, log_y)
    reach = t.ppf(0.975, len(log_x) - 2) * line.stderr
    slope = -line.slope
    if abs(slope) * 700 <= abs(line.intercept):  # its scale, exp(intercept / slope), is beyond what a float holds
        return None
    return PowerLaw(of, at, math.exp(line.intercept / slope), slope, slope - reach, slope + reach, len(log_x))


def kaplan_laws(sizes, tokens, losses) -> list[PowerLaw]:
    """L(N) at the most tokens and L(D) at the largest size; what has fewer than three points is left out.

    Args:
        sizes: N (n).
        tokens: D (n).
        losses: L (n).
    """
    sizes, tokens, losses = (np.asarray(values, dtype=float) for values in (sizes, tokens, losses))
    longest, largest = tokens >= tokens.max() * (1 - SAME), sizes >= sizes.max() * (1 - SAME)
    laws = [
        fit_power_law(sizes[longest], losses[longest], "parameters", f"{tokens.max():.3g} tokens"),
        fit_power_law(tokens[largest], losses[largest], "tokens", f"{sizes.max():.3g} parameters"),
    ]
    return [law for law in laws if law is not None]
