"""Mean and difference of a few runs with their intervals, for runs that need not come in pairs."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_gpt.experiments.statistics import LEVEL, estimate, holm, paired_p


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval and, for a difference, its p-value."""

    value: float
    low: float | None = None
    """None: one value has no spread."""
    high: float | None = None
    n: int = 1
    """Runs, or pairs of runs."""
    p: float | None = None
    paired: bool = False


def mean_of(values: list[float]) -> Interval:
    """Mean with a Student t interval of independent runs."""
    if len(values) < 2:
        return Interval(math.fsum(values))
    found = estimate(values)
    return Interval(found.mean, found.mean - found.half_width, found.mean + found.half_width, found.n)


def difference_of(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Interval:
    """Mean of `ours` minus mean of `theirs`.

    Over pairs of one seed with the paired t-test where both have at least two seeds in common, else with Welch's.

    Args:
        ours, theirs: seed -> value.
    """
    both = [seed for seed in ours if seed in theirs]
    if len(both) >= 2:
        differences = [ours[seed] - theirs[seed] for seed in both]
        return replace(mean_of(differences), p=paired_p(differences), paired=True)
    first, second = list(ours.values()), list(theirs.values())
    value, n = mean_of(first).value - mean_of(second).value, min(len(first), len(second))
    if n < 2:
        return Interval(value)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that are all equal: handled below
        test = stats.ttest_ind(first, second, equal_var=False)
        interval = test.confidence_interval(1 - LEVEL)
    if not math.isfinite(interval.low):
        return Interval(value, value, value, n, 1.0 if value == 0 else 0.0)
    return Interval(value, float(interval.low), float(interval.high), n, float(test.pvalue))


def corrected(differences: Mapping[Any, Interval]) -> dict[Any, Interval]:
    """The same differences with p-values corrected for their number (Holm, 1979)."""
    tested = [name for name, one in differences.items() if one.p is not None]
    p_values = dict(zip(tested, holm([differences[name].p for name in tested])))
    return {name: replace(one, p=p_values.get(name)) for name, one in differences.items()}
