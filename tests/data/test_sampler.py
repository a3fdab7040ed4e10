import itertools

import numpy as np
import pytest

from lightning_gpt.data.sampler import EpochWindows, RandomWindows, SequentialWindows

SAMPLERS = [RandomWindows, EpochWindows]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_depends_on_its_number_and_the_seed_only(sampler):
    whole = sampler(1000, 16, seed=3).starts(0, 10_000)
    pieces = sampler(1000, 16, seed=3)
    bounds = [0, 1, 2, 5, 64, 4095, 4097, 9999, 10_000]
    for first, last in reversed(list(itertools.pairwise(bounds))):
        np.testing.assert_array_equal(pieces.starts(first, last - first), whole[first:last])
    assert (sampler(1000, 16, seed=4).starts(0, 100) != whole[:100]).any()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tokens", [17, 18, 31, 32, 33, 47, 48, 1000])
def test_windows_lie_inside_the_corpus(sampler, tokens):
    starts = sampler(tokens, 16, seed=0).starts(0, 5000)
    assert starts.dtype == np.int64
    assert starts.min() >= 0
    assert starts.max() + 17 <= tokens


def test_random_windows_are_uniform_over_every_position():
    counts = np.bincount(RandomWindows(116, 16, seed=1).starts(0, 100_000), minlength=100)
    assert len(counts) == 100
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square with 99 degrees of freedom: p = 1e-4 at 158


def test_an_epoch_has_every_window_once_and_its_own_order_and_offset():
    for tokens in (17, 40, 100, 1000, 5000):
        sampler = EpochWindows(tokens, 16, seed=5)
        n = len(sampler)
        assert n == max(1, (tokens - 16) // 16)
        epochs = sampler.starts(0, 40 * n).reshape(40, n)
        for starts in epochs:
            np.testing.assert_array_equal(np.sort(starts), starts.min() + 16 * np.arange(n))
        if n > 50:
            assert len(np.unique(epochs.min(axis=1))) == pytest.approx(15, abs=2)  # of 16 offsets
            assert len(np.unique(epochs // 16, axis=0)) == 40


def test_every_permutation_is_about_equally_likely():
    sampler = EpochWindows(5 * 16 + 16, 16, seed=0)
    order = sampler.starts(0, 5 * 12_000).reshape(-1, 5) // 16
    _, counts = np.unique(order - order.min(axis=1, keepdims=True), axis=0, return_counts=True)
    assert len(counts) == 120
    assert ((counts - 100) ** 2 / 100).sum() < 185  # chi-square with 119 degrees of freedom: p = 1e-4 at 183


def test_neighbours_do_not_stay_together():
    n = 4000
    order = EpochWindows(16 * (n + 1), 16, seed=2).starts(0, n) // 16
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
    assert (np.abs(np.diff(order)) == 1).sum() < 10  # 2 are expected of a random order


def test_epochs_over_huge_corpora_take_no_memory():
    sampler = EpochWindows(10**13, 1024, seed=0)
    starts = sampler.starts(5 * 10**9, 10_000)
    assert len(np.unique(starts)) == 10_000
    assert starts.max() > 0.99 * 10**13


def test_sequential_windows_cover_all_targets():
    for tokens, windows in ((2, 1), (17, 1), (18, 2), (33, 2), (34, 3)):
        sampler = SequentialWindows(tokens, 16)
        assert len(sampler) == windows
        np.testing.assert_array_equal(sampler.starts(0, windows), 16 * np.arange(windows))
