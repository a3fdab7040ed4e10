"""Mean and difference of a few runs with their intervals."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean)
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return Interval(mean, mean - half, mean + half, len(values))


def difference_of(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Interval:
    """Mean of `ours` minus mean of `theirs`.

    Over pairs of one seed with the paired t-test where both have at least two seeds in common, else with Welch's.

    Args:
        ours, theirs: seed -> value.
    """
    from scipy import stats

    both = [seed for seed in ours if seed in theirs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that are all equal: handled below
        if len(both) >= 2:
            first, second = [ours[seed] for seed in both], [theirs[seed] for seed in both]
            test, n, paired = stats.ttest_rel(first, second), len(both), True
        else:
            first, second = list(ours.values()), list(theirs.values())
            n, paired = min(len(first), len(second)), False
            if n < 2:
                return Interval(math.fsum(first) / len(first) - math.fsum(second) / len(second))
            test = stats.ttest_ind(first, second, equal_var=False)
        interval = test.confidence_interval(0.95)
    value = math.fsum(first) / len(first) - math.fsum(second) / len(second)
    if not math.isfinite(interval.low):  # no spread at all
        return Interval(value, value, value, n, 1.0 if value == 0 else 0.0, paired)
    return Interval(value, float(interval.low), float(interval.high), n, float(test.pvalue), paired)
