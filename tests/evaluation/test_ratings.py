"""Ratings recover what was planted: strengths, their order, the absence of a difference behind a bias for length."""

import math
import random

import numpy as np
import pytest

from lightning_gpt.evaluation.ratings import (
    Battle,
    bootstrap,
    bradley_terry,
    elo,
    length_controlled_win_rate,
    win_rate,
)

PLANTED = {"a": 0.0, "b": 0.8, "c": -0.6, "d": 1.5}


def battles(count: int, strengths: dict[str, float], bias: float = 0.0, ties: float = 0.0) -> list[Battle]:
    """Drawn by Bradley and Terry; with a bias the longer answer wins more often; so many end in a tie by chance."""
    draw, found = random.Random(1), []
    for _ in range(count):
        one, other = draw.sample(sorted(strengths), 2)
        length = draw.gauss(60 if one == "wordy" else 0, 50) - (60 if other == "wordy" else 0)
        p = 1 / (1 + math.exp(-(strengths[one] - strengths[other] + bias * math.tanh(length / 50))))
        score = 0.5 if draw.random() < ties else float(draw.random() < p)
        found.append(Battle(one, other, score, length))
    return found


def test_bradley_terry_recovers_planted_strengths_within_its_interval():
    mean = sum(PLANTED.values()) / 4
    for name, (rating, low, high) in bootstrap(battles(3000, PLANTED), draws=150).items():
        true = 1000 + (PLANTED[name] - mean) * 400 / math.log(10)
        assert low < rating < high and low - 8 < true < high + 8, name
        assert high - low < 60


def test_intervals_cover_as_often_as_they_say():
    covered = 0
    for seed in range(40):
        draw = random.Random(seed)
        fought = [Battle("a", "b", float(draw.random() < 0.7)) for _ in range(80)]
        true = 1000 + math.log(0.7 / 0.3) / 2 * 400 / math.log(10)
        _, low, high = bootstrap(fought, draws=60, seed=seed)["a"]
        covered += low <= true <= high
    assert covered >= 33  # 95% of 40 is 38; 32 or fewer would happen once in two thousand times


def test_a_tie_counts_half():
    assert bradley_terry([Battle("a", "b", 0.5)] * 9) == {"a": pytest.approx(1000), "b": pytest.approx(1000)}
    wins = [Battle("a", "b", 1.0)] * 30 + [Battle("a", "b", 0.0)] * 10
    halves = [Battle("a", "b", 0.75)] * 40
    assert bradley_terry(wins)["a"] == pytest.approx(bradley_terry(halves)["a"], abs=1e-3)
    assert bradley_terry(wins)["a"] - 1000 == pytest.approx(math.log(3) / 2 * 400 / math.log(10), rel=1e-2)
    tied = bradley_terry(battles(3000, PLANTED, ties=0.3))
    assert sorted(tied, key=tied.__getitem__) == sorted(PLANTED, key=PLANTED.__getitem__)


def test_an_unbeaten_model_has_a_rating():
    assert 1000 < bradley_terry([Battle("a", "b", 1.0)] * 5)["a"] < 3000


def test_elo_orders_models_and_moves_as_it_is_defined():
    fought = battles(3000, PLANTED)
    ratings = elo(fought)
    assert sorted(ratings, key=ratings.__getitem__) == sorted(PLANTED, key=PLANTED.__getitem__)
    assert sum(ratings.values()) == pytest.approx(4000)
    one = elo([Battle("a", "b", 1.0), Battle("a", "b", 1.0)])
    second = 4 * (1 - 1 / (1 + 10 ** (-4 / 400)))
    assert one["a"] == pytest.approx(1002 + second) and one["b"] == pytest.approx(998 - second)
    interval = bootstrap(fought, elo, draws=50)["d"]
    assert interval[1] < interval[2] and interval[1] > 1000


def test_wilson_intervals_hold_what_was_planted():
    _, low, high, n = win_rate(battles(3000, PLANTED), "d", "c")
    assert low < 1 / (1 + math.exp(-2.1)) < high and n > 400
    assert win_rate([Battle("a", "b", 0.5)] * 4, "a", "b")[0] == 0.5
    p, low, high, _ = win_rate([Battle("a", "b", 1.0)] * 20, "b", "a")
    assert p == 0 and low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.1611, abs=1e-3)
    assert math.isnan(win_rate([], "a", "b")[0])


def test_a_bias_for_length_is_taken_out():
    fought = battles(4000, {"wordy": 0.0, "terse": 0.0}, bias=1.5)
    assert win_rate(fought, "wordy", "terse")[0] > 0.65
    value, low, high = length_controlled_win_rate(fought, "wordy", "terse")
    assert low < 0.5 < high and value == pytest.approx(0.5, abs=0.06) and high - low < 0.15
    back = length_controlled_win_rate(fought, "terse", "wordy")[0]
    assert value + back == pytest.approx(1)


def test_without_a_bias_nothing_is_taken_out():
    fought = battles(4000, {"wordy": 0.7, "terse": 0.0})
    plain = win_rate(fought, "wordy", "terse")[0]
    assert length_controlled_win_rate(fought, "wordy", "terse")[0] == pytest.approx(plain, abs=0.06)
    even = [Battle("a", "b", score) for score in (1.0, 1.0, 0.0, 1.0)]
    assert length_controlled_win_rate(even, "a", "b")[0] == pytest.approx(0.75, abs=0.01)
    assert np.isfinite(length_controlled_win_rate([Battle("a", "b", 1.0, 5.0)] * 6, "a", "b")).all()
