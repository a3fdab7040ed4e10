"""How long drafts are: the arithmetic, and that they stop where they do not pay."""

import pytest
import torch

from lightning_gpt.inference.draft_length import Acceptance, StepTimes, best_length, expected_tokens
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.inference.speculator import Speculator, TextLike


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
def test_expected_tokens_by_simulation(acceptance):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(100_000, 4, generator=generator) < acceptance
    tokens = kept.long().cumprod(1).sum(1) + 1
    assert expected_tokens(acceptance, 4) == pytest.approx(tokens.double().mean().item(), abs=0.02)


def test_acceptance_counts_judged_tokens_only_and_forgets():
    estimate = Acceptance(0.5, 2.0)
    for _ in range(60):
        estimate.add(4, 2)  # kept, kept, rejected; the fourth was not judged
    assert estimate.rate == pytest.approx(2 / 3, abs=0.01)
    for _ in range(60):
        estimate.add(3, 0)
    assert estimate.rate < 0.01


def test_step_times():
    times = StepTimes()
    times.add(1, 1.0)
    assert times.predict(1) == 1.0
    assert times.predict(3) == pytest.approx(1.1)
    times.add(5, 2.0)
    assert times.predict(3) == pytest.approx(1.5)
    times.add(5, 100.0)
    assert times.predict(5) == pytest.approx(2.4)
    assert times.knows(5)
    assert not times.knows(3)


def times_of(*seconds):
    times = StepTimes()
    for tokens, own in enumerate(seconds, 1):
        times.add(tokens, own)
    return times


def test_best_length():
    free = times_of(*[1.0] * 9)
    assert best_length(1.0, 8, 1, free, 0.0) == (8, 9.0)
    assert best_length(0.0, 8, 1, free, 0.0) == (0, 1.0)
    assert best_length(0.5, 8, 1, times_of(*range(1, 10)), 0.0) == (0, 1.0)  # each token costs a step
    length, gain = best_length(0.7, 8, 1, free, 0.2)
    costs = [(1 - 0.7 ** (k + 1)) / 0.3 / (1 + 0.2 * k) for k in range(9)]
    assert (length, gain) == (max(range(9), key=costs.__getitem__), pytest.approx(max(costs)))
    # Four texts: a step of 4 (1 + k) tokens instead of 4.
    assert best_length(1.0, 2, 4, times_of(*range(1, 13)), 0.0) == (0, 1.0)


class Text(TextLike):
    def __init__(self, key):
        self.key, self.tokens = key, [1, 2, 3]


class Fixed:
    """Proposes as many tokens as asked for, in `cost` seconds of a pretended clock for each."""

    def __init__(self, cost=0.0):
        self.cost, self.clock = cost, 0.0

    def propose(self, asks, sampler):
        self.clock += self.cost * max(ask.count for ask in asks)
        return [Proposal([0] * ask.count) for ask in asks]

    def remove(self, key):
        pass


def run(speculator, rate, steps, texts=1, step_cost=0.25, seed=0):
    """Steps of a pretended network whose step takes 1 second and step_cost for each further token; tokens, seconds."""
    generator = torch.Generator().manual_seed(seed)
    made = seconds = 0
    rows = [Text(key) for key in range(texts)]
    for _ in range(steps):
        proposals = speculator.propose(rows, None)
        outcomes, tokens = {}, 0
        for text, own in zip(rows, proposals):
            kept = torch.rand(len(own.tokens), generator=generator) < rate
            outcomes[text.key] = len(own.tokens), int(kept.long().cumprod(0).sum()) + 1
            tokens += 1 + len(own.tokens)
            made += outcomes[text.key][1]
        took = 1 + step_cost * (tokens - 1)
        speculator.observe(outcomes, tokens, took)
        seconds += took
    return made, seconds


def test_good_drafts_become_long_and_pay():
    speculator = Speculator(Fixed(), 8)
    made, seconds = run(speculator, 0.9, 400, step_cost=0.02)
    best = max(expected_tokens(0.9, k) / (1 + 0.02 * k) for k in range(9))
    assert made / seconds > 0.9 * best
    assert speculator.stats().speedup == pytest.approx(made / seconds, rel=0.05)
    assert speculator.stats().acceptance == pytest.approx((expected_tokens(0.9, 8) - 1) / 8, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("cost", [0.0, 0.5])
@pytest.mark.parametrize("steps", [50, 600])
def test_drafts_that_do_not_pay_stop(rate, cost, steps, monkeypatch):
    """Where each drafted token costs half a step or more, a text loses under 5%."""
    for step_cost in (0.1, 0.5, 1.0):
        draft = Fixed(cost)
        monkeypatch.setattr("lightning_gpt.inference.speculator.perf_counter", lambda draft=draft: draft.clock)
        made, seconds = run(Speculator(draft, 8), rate, steps, step_cost=step_cost)
        assert made / (seconds + draft.clock) > 0.95


def test_a_draft_that_becomes_good_is_tried_again():
    speculator = Speculator(Fixed(), 4)
    run(speculator, 0.0, 200, step_cost=0.5)
    made, seconds = run(speculator, 1.0, 1500, step_cost=0.1)
    assert made / seconds > 1.5


def test_no_drafts_above_the_threshold():
    speculator = Speculator(Fixed(), 4, max_texts=3)
    run(speculator, 1.0, 20, texts=4, step_cost=0.0)
    assert speculator.stats().proposed == 0
    run(speculator, 1.0, 20, texts=3, step_cost=0.0)
    assert speculator.stats().proposed > 0


def test_statistics():
    speculator = Speculator(Fixed(), 3, adaptive=False)
    assert str(speculator.stats()) == "drafts: none in 0 steps"
    for _ in range(5):
        speculator.propose([Text(0)], None)
        speculator.observe({0: (3, 2)}, 4, 1.0)
    stats = speculator.stats()
    assert (stats.proposed, stats.accepted, stats.steps, stats.tokens) == (15, 5, 5, 10)
    assert stats.tokens_per_step == 2.0
    assert stats.speedup is None
    assert str(stats) == "drafts: 5 of 15 tokens kept (33%), 2.00 tokens a step"


@pytest.mark.parametrize("options", [{"most": 0}, {"max_texts": 0}])
def test_refusals(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        Speculator(Fixed(), **options)
