import itertools
import random

import pytest

from lightning_gpt.serving.degradation import Degradation, DegradationConfig


def test_it_climbs_step_by_step_and_comes_back_when_the_pressure_has_gone(clock):
    degradation = Degradation(smaller_model=True, clock=clock)
    assert degradation.update(0.49) == 0
    assert degradation.cap(500, 64) == 500
    assert degradation.update(0.9) == 1
    assert degradation.cap(500, 64) == 64
    assert degradation.cap(5, 64) == 5
    assert degradation.update(0.9) == 1
    clock.now += 1
    assert degradation.update(0.9) == 2
    clock.now += 9.9
    assert degradation.update(0.0) == 2
    clock.now += 0.1
    assert degradation.update(0.0) == 1
    clock.now += 10
    assert degradation.update(0.3) == 1
    assert degradation.update(0.1) == 0


def test_without_a_smaller_model_answers_only_become_shorter_and_an_open_breaker_is_pressure(clock):
    degradation = Degradation(clock=clock)
    for _ in range(5):
        assert degradation.update(0.0, breaker_closed=False) == 1
        clock.now += 20
    assert degradation.update(0.0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_pressure_makes_it_flutter_no_oftener_than_it_may(clock, seed):
    draw, degradation = random.Random(seed), Degradation(True, clock=clock)
    falls, level = [], 0
    for _ in range(5000):
        clock.now += draw.expovariate(5)
        before, level = level, degradation.update(draw.uniform(0, 1.5))
        assert abs(level - before) <= 1
        if level < before:
            falls.append(clock.now)
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(falls))


def test_thresholds_without_a_gap_are_refused():
    with pytest.raises(ValueError, match="flutters"):
        DegradationConfig(leave=(0.5, 0.5))
    with pytest.raises(ValueError, match="rising"):
        DegradationConfig(enter=(0.9, 0.5))
