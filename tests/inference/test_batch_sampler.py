"""Draws for many requests at once against sampling.py, one configuration at a time."""

import math

import pytest
import torch
from scipy.stats import chi2

from lightning_gpt.inference.batch_sampler import BatchSampler, Row
from lightning_gpt.inference.row_filters import NotFiniteError
from lightning_gpt.inference.sampling import SamplingConfig, process_logits
from lightning_gpt.inference.speculation import Proposal

SETTINGS = {
    "plain": SamplingConfig(),
    "cold": SamplingConfig(0.6),
    "hot": SamplingConfig(1.7),
    "top_k": SamplingConfig(0.8, top_k=5),
    "top_k_all": SamplingConfig(top_k=10_000),
    "top_p": SamplingConfig(0.9, top_p=0.7),
    "top_p_small": SamplingConfig(top_p=0.05),
    "top_p_one": SamplingConfig(top_p=1.0),
    "min_p": SamplingConfig(min_p=0.1),
    "all": SamplingConfig(1.1, top_k=40, top_p=0.85, min_p=0.02),
    "no_top_k": SamplingConfig(1.1, top_p=0.85, min_p=0.02),
}


def logits_of(V, scale=2.0, seed=0, rows=1):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits_V, sampling, count, **options):
    """Tokens of `count` requests with different seeds, each drawing once from the same logits."""
    sampler = BatchSampler(len(logits_V))
    for key in range(count):
        sampler.add(key, sampling, [0], key, **options)
    return torch.tensor([own.token for own in sampler.draw(logits_V.expand(count, -1), range(count))])


def fits(tokens_N, p_V):
    """Whether drawn tokens could come from the distribution: chi-square over bins of five and more, p >= 1e-4."""
    counts_V = torch.bincount(tokens_N, minlength=len(p_V)).double()
    expected_V = p_V.double() * len(tokens_N)
    if counts_V[p_V == 0].any():
        return False
    large = expected_V >= 5
    counts = torch.cat((counts_V[large], counts_V[~large].sum()[None]))
    expected = torch.cat((expected_V[large], expected_V[~large].sum()[None]))
    counts, expected = counts[expected > 0], expected[expected > 0]
    if len(expected) == 1:
        return True
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return chi2.sf(statistic, len(expected) - 1) >= 1e-4


@pytest.mark.parametrize("V", [7, 64, 200, 5000])
@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_probabilities_are_those_of_the_readable_functions(sampling, V):
    logits = logits_of(V, rows=9)
    sampler = BatchSampler(V)
    for key in range(9):
        sampler.add(key, sampling, [0], 0)
    ours = sampler.distributions(logits, [Row(key) for key in range(9)])
    expected = torch.softmax(process_logits(logits, sampling), -1)
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("V", "scale"), [(90, 1.0), (20_000, 6.0)])
def test_draws_follow_the_probabilities(sampling, V, scale):
    logits = logits_of(V, scale)
    tokens = draws(logits[0], sampling, 400)
    p_V = torch.softmax(process_logits(logits, sampling), -1)[0]
    assert fits(tokens, p_V)


@pytest.mark.parametrize("name", ["plain", "top_k", "top_p", "top_p_small", "min_p", "all", "no_top_k"])
def test_many_draws_follow_the_probabilities_and_no_others(name):
    sampling, logits = SETTINGS[name], logits_of(150, 1.0, seed=3)
    tokens = draws(logits[0], sampling, 20_000)
    p_V = torch.softmax(process_logits(logits, sampling), -1)[0]
    assert fits(tokens, p_V)
    other = SamplingConfig(sampling.temperature * 1.5, sampling.top_k, sampling.top_p, sampling.min_p)
    assert not fits(tokens, torch.softmax(process_logits(logits, other), -1)[0])


def test_a_request_draws_the_same_whatever_stands_beside_it():
    V = 20_001
    steps = [logits_of(V, 4.0, seed=step, rows=12) for step in range(5)]
    configs = [*SETTINGS.values(), SamplingConfig(0.0)]

    def run(keys):
        sampler = BatchSampler(V)
        for key in keys:
            sampler.add(key, configs[key], [1, 2], 100 + key)
        return [[own.token for own in sampler.draw(logits[list(keys)], keys)] for logits in steps]

    together = run(range(12))
    assert len({tuple(row) for row in zip(*together)}) > 8
    for key in range(12):
        assert [row[0] for row in run([key])] == [row[key] for row in together]
    backwards = run([11, 3, 7, 5])
    assert [row[1] for row in backwards] == [row[3] for row in together]


def test_seeds_differ_and_repeat():
    logits = logits_of(500, 0.5)[0]
    assert torch.equal(draws(logits, SamplingConfig(), 50), draws(logits, SamplingConfig(), 50))
    assert len(set(draws(logits, SamplingConfig(), 50).tolist())) > 20


def test_a_generator_in_place_of_the_seed_is_drawn_from():
    logits = logits_of(500, 0.5)

    def tokens(generator):
        sampler = BatchSampler(500)
        sampler.add(0, SamplingConfig(), [0], generator)
        return [sampler.draw(logits, [0])[0].token for _ in range(100)]

    seeded = BatchSampler(500)
    seeded.add(0, SamplingConfig(), [0], 5)
    same = [seeded.draw(logits, [0])[0].token for _ in range(100)]
    generator = torch.Generator().manual_seed(5)
    assert tokens(generator) == same
    assert tokens(generator) != same


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(0.0, repetition_penalty=1.8),
        SamplingConfig(0.0, presence_penalty=1.5, frequency_penalty=0.7),
        SamplingConfig(0.0, presence_penalty=-1.0, logit_bias={3: 2.5, 9: -100.0}),
        SamplingConfig(0.9, 30, 0.9, None, 0.8, 0.5, -0.4, {1: 1.0}),
    ],
    ids=["repetition", "counts", "bias", "all"],
)
def test_penalties_and_bias_are_those_of_the_readable_functions(sampling):
    V, prompt = 40, [4, 4, 9, 30]
    sampler = BatchSampler(V)
    sampler.add(0, sampling, prompt, 7)
    sampler.add(1, SamplingConfig(0.0), prompt, 7)
    seen, counts = torch.zeros(1, V, dtype=torch.bool), torch.zeros(1, V)
    seen[0, prompt] = True
    for step in range(60):
        logits = logits_of(V, 1.0, seed=step % 3, rows=2)
        expected = torch.softmax(process_logits(logits[:1], sampling, seen, counts), -1)
        if sampling.temperature == 0:
            expected = torch.nn.functional.one_hot(expected.argmax(-1), V).float()
        given = sampler.distributions(logits, [Row(0), Row(1)])
        torch.testing.assert_close(given[:1], expected, atol=1e-5, rtol=1e-4)
        drawn, plain = sampler.draw(logits, [0, 1])
        assert given[0, drawn.token] > 0
        assert plain.token == logits[1].argmax()
        seen[0, drawn.token] = True
        counts[0, drawn.token] += 1
    assert counts.sum() == 60


def test_penalties_count_tokens_that_are_only_drafted():
    V, sampling = 30, SamplingConfig(1.0, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.3)
    logits = logits_of(V)
    sampler = BatchSampler(V)
    sampler.add(0, sampling, [1], 0)
    seen, counts = torch.zeros(1, V, dtype=torch.bool), torch.zeros(1, V)
    seen[0, [1, 5, 7]] = True
    counts[0, 5], counts[0, 7] = 2, 1
    expected = torch.softmax(process_logits(logits, sampling, seen, counts), -1)
    torch.testing.assert_close(sampler.distributions(logits, [Row(0, (5, 7, 5))]), expected, atol=1e-6, rtol=1e-5)
    counts.zero_()
    seen[0, [5, 7]] = False
    expected = torch.softmax(process_logits(logits, sampling, seen, counts), -1)
    torch.testing.assert_close(sampler.distributions(logits, [Row(0)]), expected, atol=1e-6, rtol=1e-5)


def test_bias_forces_and_forbids():
    logits = logits_of(5000, 3.0, seed=4)
    best = int(logits.argmax())
    assert set(draws(logits[0], SamplingConfig(logit_bias={17: 100.0}), 40).tolist()) == {17}
    assert best not in draws(logits[0], SamplingConfig(0.2, logit_bias={best: -100.0}), 40)
    assert best not in draws(logits[0], SamplingConfig(0.0), 2, banned_ids=[best])
    assert draws(logits[0], SamplingConfig(2.0), 300, limit=9).max() < 9
    assert draws(logits[0], SamplingConfig(0.0), 1, limit=9) == logits[0, :9].argmax()


def test_rows_with_different_limits():
    logits, sampler = logits_of(300, 0.1), BatchSampler(300)
    for key, limit in enumerate((5, 300, 70)):
        sampler.add(key, SamplingConfig(), [0], key, limit=limit)
    for _ in range(50):
        drawn = [own.token for own in sampler.draw(logits.expand(3, -1), range(3))]
        assert drawn[0] < 5
        assert drawn[2] < 70


def test_logprobs_are_the_networks_own():
    logits, sampler = logits_of(4000, rows=3), BatchSampler(4000)
    sampler.add(0, SamplingConfig(0.3, 5, logit_bias={8: 50.0}), [0], 0, logprobs=2)
    sampler.add(1, SamplingConfig(0.0), [0], 0)
    sampler.add(2, SamplingConfig(0.0), [0], 0, logprobs=0)
    expected = torch.log_softmax(logits, -1)
    biased, plain, chosen = sampler.draw(logits, [0, 1, 2])
    assert biased.token == 8
    assert biased.logprob == pytest.approx(expected[0, 8].item(), abs=1e-5)
    values, ids = expected[0].topk(2)
    assert [index for index, _ in biased.top] == ids.tolist()
    assert [own for _, own in biased.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert (plain.logprob, plain.top) == (None, None)
    assert chosen.logprob == pytest.approx(expected[2].max().item(), abs=1e-5)
    assert chosen.top == []


@pytest.mark.parametrize("V", [50, 130, 20_000])
def test_ties(V):
    flat = torch.zeros(V)
    for sampling in (SamplingConfig(), SamplingConfig(top_k=3), SamplingConfig(top_p=0.01), SamplingConfig(min_p=1.0)):
        assert len(set(draws(flat, sampling, 200).tolist())) > 30, sampling  # ties stay
    assert set(draws(flat, SamplingConfig(0.0), 3).tolist()) == {0}
    two = flat.clone()
    two[[V - 1, V // 2]] = 9.0
    for sampling in (SamplingConfig(top_k=1), SamplingConfig(top_k=2), SamplingConfig(top_p=0.3)):
        assert set(draws(two, sampling, 100).tolist()) == {V - 1, V // 2}
    assert set(draws(two, SamplingConfig(0.0), 3).tolist()) == {V // 2}


@pytest.mark.parametrize("V", [1, 2, 63, 64, 65, 20_003])
def test_the_ends_of_the_vocabulary_can_be_drawn(V):
    for place in {0, V - 1, V // 2}:
        logits = torch.full((V,), -math.inf)
        logits[place] = 3.0
        for sampling in (*SETTINGS.values(), SamplingConfig(0.0)):
            assert draws(logits, sampling, 2).tolist() == [place, place]


@pytest.mark.parametrize("temperature", [1e-30, 1e-7, 1e-3, 1e6])
def test_extreme_temperatures(temperature):
    logits = logits_of(3000, 5.0)
    for extra in ({}, {"top_p": 0.5}, {"top_k": 4}, {"min_p": 1.0}):
        tokens = draws(logits[0], SamplingConfig(temperature, **extra), 50)
        if temperature < 1:
            assert set(tokens.tolist()) == {int(logits.argmax())}
        elif not extra:
            assert len(set(tokens.tolist())) > 40


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampling", [SamplingConfig(0.0), SamplingConfig(), SamplingConfig(top_k=3, top_p=0.5)])
@pytest.mark.parametrize("V", [40, 20_000])
def test_logits_without_a_token_are_refused_and_nothing_changes(bad, sampling, V):
    logits = logits_of(V, rows=3)
    broken = logits.clone()
    broken[1, 3 if bad != -math.inf else slice(None)] = bad
    sampler, other = BatchSampler(V), BatchSampler(V)
    for own in (sampler, other):
        for key, settings in enumerate((SamplingConfig(0.7), sampling, SamplingConfig(0.0))):
            own.add(key, settings, [0], key)
    with pytest.raises(NotFiniteError, match="no token to draw") as error:
        sampler.draw(broken, [0, 1, 2])
    assert error.value.rows == [1]
    assert sampler.draw(logits, [0, 1, 2]) == other.draw(logits, [0, 1, 2])


def test_bfloat16_logits_with_many_ties():
    logits = logits_of(20_000, 4.0).bfloat16()
    sampler = BatchSampler(20_000)
    configs = [SamplingConfig(0.9, top_k=60), SamplingConfig(0.9, top_p=0.8)]
    for key, sampling in enumerate(configs):
        sampler.add(key, sampling, [0], key)
    given = sampler.distributions(logits.expand(2, -1), [Row(0), Row(1)])
    for own, sampling in zip(given, configs):
        expected = torch.softmax(process_logits(logits.float(), sampling), -1)[0]
        assert torch.equal(own > 0, expected > 0)
    assert all(fits(draws(logits[0], sampling, 300), own) for own, sampling in zip(given, configs))


def test_drafts_that_are_chosen_change_no_token():
    V, count = 60, 40
    steps = logits_of(V, 1.5, seed=2, rows=count + 8)  # a network whose logits depend on the place alone
    sampling = SamplingConfig(0.9, 20, 0.95, None, 1.2, 0.2, 0.3)
    plain, drafted = BatchSampler(V), BatchSampler(V)
    for sampler in (plain, drafted):
        for key in (0, 1):
            sampler.add(key, sampling, [3], key, logprobs=1)
    expected = [[plain.draw(steps[place][None], [key])[0] for place in range(count)] for key in (0, 1)]
    generator, made = torch.Generator().manual_seed(0), [[], []]
    kept = 0
    while min(map(len, made)) < count:
        drafts = []
        for key in (0, 1):
            length = int(torch.randint(0, 5, (), generator=generator))
            tokens = [own.token for own in expected[key][len(made[key]) : len(made[key]) + length]]
            if tokens and torch.rand((), generator=generator) < 0.5:
                tokens[-1] = (tokens[-1] + 1) % V
            drafts.append(Proposal(tokens))
        rows = torch.cat([steps[len(own) : len(own) + len(draft.tokens) + 1] for own, draft in zip(made, drafts)])
        for own, new, draft in zip(made, drafted.verify(rows, [0, 1], drafts), drafts):
            assert 1 <= len(new) <= len(draft.tokens) + 1
            kept += len(new) - 1
            own += new
    assert kept > 20
    for own, wanted in zip(made, expected):
        assert [one.token for one in own[:count]] == [one.token for one in wanted]
        assert [one.logprob for one in own[:count]] == pytest.approx([one.logprob for one in wanted], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": SamplingConfig(logit_bias={50: 1.0})}, "logit_bias has token 50"),
        ({"limit": 0}, "limit=0"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"key": 7}, "key=7 is in use"),
    ],
)
def test_refusals(options, message):
    sampler = BatchSampler(50)
    sampler.add(7, SamplingConfig(), [0], 0)
    with pytest.raises(ValueError, match=message):
        sampler.add(**{"key": 1, "sampling": SamplingConfig(), "prompt_ids": [0], "seed": 0, **options})


def test_requests_leave():
    sampler = BatchSampler(50)
    sampler.add(1, SamplingConfig(), [0], 0)
    sampler.remove(1)
    sampler.add(1, SamplingConfig(0.0), [0], 0)
    assert sampler.draw(torch.arange(50.0)[None], [1])[0].token == 49
