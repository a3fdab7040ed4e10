import math

import pytest
import torch

from lightning_gpt.inference import sampling
from lightning_gpt.inference.sampling import SamplingConfig, process_logits, sample

transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as peer  # noqa: E402

B, V = 5, 50


@pytest.fixture
def logits():
    return torch.randn(B, V, generator=torch.Generator().manual_seed(0)) * 3


def seen_mask(ids):
    return torch.zeros(B, V, dtype=torch.bool).scatter_(1, ids, True)


IDS = torch.randint(V, (B, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 7, 50, 80])
def test_top_k(logits, k):
    assert torch.equal(sampling.keep_top_k(logits, k), peer.TopKLogitsWarper(k)(IDS, logits))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p(logits, p):
    assert torch.equal(sampling.keep_top_p(logits, p), peer.TopPLogitsWarper(p)(IDS, logits))


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_min_p(logits, fraction):
    assert torch.equal(sampling.keep_min_p(logits, fraction), peer.MinPLogitsWarper(fraction)(IDS, logits))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty(logits, penalty):
    expected = peer.RepetitionPenaltyLogitsProcessor(penalty)(IDS, logits)
    torch.testing.assert_close(sampling.penalize_repetition(logits, seen_mask(IDS), penalty), expected)


def test_all_together_in_the_order_of_transformers(logits):
    config = SamplingConfig(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
    expected = logits
    for step in (
        peer.RepetitionPenaltyLogitsProcessor(1.2),
        peer.TemperatureLogitsWarper(0.7),
        peer.TopKLogitsWarper(20),
        peer.TopPLogitsWarper(0.9),
        peer.MinPLogitsWarper(0.02),
    ):
        expected = step(IDS, expected)
    ours = process_logits(logits, config, seen_mask(IDS))
    assert torch.equal(ours.isinf(), expected.isinf())
    torch.testing.assert_close(ours, expected)


def test_temperature_zero_is_greedy_and_keeps_the_penalty(logits):
    assert torch.equal(sample(logits, SamplingConfig(temperature=0)), logits.argmax(-1))
    config = SamplingConfig(temperature=0, repetition_penalty=1e6)
    best = logits.argmax(-1, keepdim=True)
    assert not (sample(logits, config, seen_BV=seen_mask(best)) == best[:, 0]).any()


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    logits = probabilities.log().expand(40000, 5)
    drawn = sample(logits, SamplingConfig(), torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn, minlength=5) / 40000
    assert frequency[4] == 0
    # four standard deviations of a proportion
    assert (frequency - probabilities).abs().max() < 4 * math.sqrt(0.25 / 40000)


def test_seeds(logits):
    def draw(seed):
        return sample(logits.expand(B, V), SamplingConfig(), torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert any(not torch.equal(draw(1), draw(seed)) for seed in range(2, 6))


def test_a_row_with_its_own_generator_does_not_depend_on_the_others(logits):
    def generators(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    together = sample(logits, SamplingConfig(), generators(range(B)))
    for row in range(B):
        assert sample(logits[row : row + 1], SamplingConfig(), generators([row])) == together[row]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_refusals_name_the_field(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SamplingConfig(**fields)
