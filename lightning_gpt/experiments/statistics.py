"""Statistics of a few runs: intervals, paired comparisons, effect sizes, power. The distributions are scipy's."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
"""Of all tests; intervals are 1 - LEVEL."""
POWER = 0.8
"""What "can be seen" means: found in four of five repetitions of the experiment."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its spread."""

    n: int
    mean: float
    deviation: float | None
    """Standard deviation with n - 1 in the denominator; None: one value has no spread."""
    half_width: float | None
    """Of the 95% Student t interval."""
    bootstrap: tuple[float, float] | None
    """95% BCa bootstrap interval (Efron, 1987); None below three values or when all are equal. With few values it is
    too narrow (at n = 5 it covers about 85%), and is shown beside the t interval, not instead of it."""

    @property
    def sign(self) -> int:
        """-1 or 1 when the t interval lies on one side of zero, else 0 (also when there is none)."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return 0
        return -1 if self.mean < 0 else 1

    def text(self, signed: bool = False, digits: int = 4) -> str:
        """ "1.8857 ± 0.0031"."""
        shown = round(self.mean, digits) + 0.0  # no "-0.0000"
        mean = f"{shown:{'+' if signed else ''}.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and intervals of independent values.

    Raises:
        ValueError: no value.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("a mean needs at least one value")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(1, mean, None, None, None)
    deviation = float(sample.std(ddof=1))
    half_width = float(stats.t.ppf(1 - LEVEL / 2, sample.size - 1)) * deviation / math.sqrt(sample.size)
    return Estimate(sample.size, mean, deviation, half_width, _bootstrap(sample))


def _bootstrap(sample: np.ndarray) -> tuple[float, float] | None:
    if sample.size < 3 or np.ptp(sample) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of samples whose interval ends at an extreme; the numbers stand
        found = stats.bootstrap(
            (sample,), np.mean, confidence_level=1 - LEVEL, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
    return None if math.isnan(found.low) else (float(found.low), float(found.high))


@dataclass(frozen=True)
class Comparison:
    """One variant against its reference, run by run of one seed; negative is lower than the reference."""

    difference: Estimate
    p: float | None
    """Of the two-sided paired t test; None: fewer than two pairs."""
    p_holm: float | None
    """Corrected for the number of comparisons of the experiment (Holm, 1979)."""
    effect: float | None
    """Hedges' g of the paired differences: their mean in standard deviations; None: no spread, or two pairs."""
    larger_is_better: bool = False

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p_holm is None:
            return "one seed: no verdict"
        if self.p_holm >= LEVEL:
            return "not distinguishable"
        return "better" if (self.difference.mean > 0) == self.larger_is_better else "worse"


def compare(differences: Mapping[str, Sequence[float]], larger_is_better: bool = False) -> dict[str, Comparison]:
    """Paired comparisons of one experiment, Holm's correction over those that can be tested.

    Args:
        differences: variant -> its value minus its reference's, one per seed that both finished; at least one.
        larger_is_better: of the values.
    """
    p_values = {name: paired_p(values) for name, values in differences.items()}
    corrected = dict(zip((k for k, p in p_values.items() if p is not None), holm([*filter(_given, p_values.values())])))
    return {
        name: Comparison(estimate(values), p_values[name], corrected.get(name), hedges_g(values), larger_is_better)
        for name, values in differences.items()
    }


def _given(value: float | None) -> bool:
    return value is not None


def paired_p(differences: Sequence[float]) -> float | None:
    """p of the two-sided paired t test; 1 when every difference is zero, 0 when all are equal otherwise."""
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for the family-wise error rate: the smallest times m, the next times m - 1, ..., never
    falling (Holm, 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def hedges_g(differences: Sequence[float]) -> float | None:
    """Mean over standard deviation of paired differences, freed of its bias in small samples by the exact factor
    gamma(m / 2) / (sqrt(m / 2) gamma((m - 1) / 2)) of m = n - 1 (Hedges, 1981); None below three pairs."""
    m = len(differences) - 1
    deviation = float(np.std(differences, ddof=1)) if m > 1 else 0.0
    if deviation == 0:
        return None
    correction = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2)
    return correction * float(np.mean(differences)) / deviation


def power(n: int, difference: float, deviation: float, level: float = LEVEL) -> float:
    """Probability that the two-sided paired t test finds a true difference.

    Args:
        n: pairs, at least 2.
        difference: true mean of the paired differences.
        deviation: their true standard deviation, above 0.
        level: of the test.
    """
    if difference == 0:
        return level  # scipy's noncentral F is wrong at zero
    critical = stats.t.ppf(1 - level / 2, n - 1)
    # The square of a noncentral t is a noncentral F, which scipy computes stably for one degree of freedom too.
    return float(stats.ncf.sf(critical**2, 1, n - 1, n * (difference / deviation) ** 2))


def visible_difference(n: int, deviation: float, level: float = LEVEL) -> float:
    """The smallest true difference that n pairs find with probability POWER, in the deviation's unit."""
    from scipy.optimize import brentq

    high = 1.0
    while power(n, high, 1.0, level) < POWER:
        high *= 2
    return deviation * float(brentq(lambda ratio: power(n, ratio, 1.0, level) - POWER, 0.0, high))


def pairs_needed(difference: float, deviation: float, level: float = LEVEL, most: int = 10_000) -> int | None:
    """The fewest pairs that find a difference with probability POWER; None: more than `most`."""
    low, high = 1, 2
    while power(high, difference, deviation, level) < POWER:
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:  # power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, deviation, level) >= POWER else (middle, high)
    return high


def power_statement(comparisons: Sequence[Comparison], unit: str) -> str:
    """What this experiment could and could not have seen, and how many seeds would see half of it.

    The deviation is the median of the comparisons'; the level is corrected for their number as Bonferroni, which is
    Holm's first step.
    """
    spreads = [(c.difference.n, c.difference.deviation) for c in comparisons if c.difference.deviation]
    if not spreads:
        return ""
    deviation = float(np.median([deviation for _, deviation in spreads]))
    n, level = min(n for n, _ in spreads), LEVEL / len(comparisons)
    visible = visible_difference(n, deviation, level)
    needed = pairs_needed(visible / 2, deviation, level)
    return (
        f"With n = {n} and a (median) standard deviation of paired differences of {deviation:.2g}{unit}, a difference "
        f"under {visible:.2g} is missed more often than one time in five; n = {needed} would see half of it."
    )
