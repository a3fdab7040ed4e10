import pytest
from scipy import stats

from lightning_gpt.experiments.group_statistics import Interval, corrected, difference_of, mean_of

OURS, THEIRS = {1: 1.9, 2: 1.7, 3: 1.8}, {1: 2.0, 2: 1.9, 3: 1.85}


def test_mean_has_students_interval():
    found = mean_of([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((7 / 3, low, high, 3))
    assert mean_of([1.5]) == Interval(1.5)


def test_runs_of_one_seed_are_paired():
    found = difference_of(OURS, THEIRS)
    test = stats.ttest_rel(list(OURS.values()), list(THEIRS.values()))
    assert found.paired and found.n == 3
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, *test.confidence_interval(0.95)))


def test_runs_of_other_seeds_are_compared_by_welchs_test():
    found = difference_of(OURS, {seed + 10: value for seed, value in THEIRS.items()})
    test = stats.ttest_ind(list(OURS.values()), list(THEIRS.values()), equal_var=False)
    assert not found.paired
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, *test.confidence_interval(0.95)))


def test_equal_values_and_single_runs():
    assert difference_of({1: 2.0, 2: 2.0}, {1: 2.0, 2: 2.0}).p == 1.0
    assert difference_of({1: 2.0, 2: 2.0}, {3: 1.0, 4: 1.0}).p == 0.0
    assert difference_of({1: 2.0}, {1: 1.5}) == Interval(0.5)


def test_p_values_are_corrected_for_their_number():
    found = corrected({"a": Interval(1, p=0.01), "b": Interval(1, p=0.04), "c": Interval(1)})
    assert [one.p for one in found.values()] == [0.02, 0.04, None]
