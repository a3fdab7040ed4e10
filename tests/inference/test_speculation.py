"""Drafted tokens that are kept or replaced must leave the network's own distribution."""

import pytest
import torch
from scipy.stats import chi2

from lightning_gpt.inference import speculation
from lightning_gpt.inference.batch_sampler import BatchSampler, Row
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculation import Proposal, accept, judge, residual, speculate

V, DRAWS = 6, 200_000


def chain(seed, sharp):
    """A language of V tokens: each token's distribution given the one before, (V, V)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(V, V, generator=generator) * sharp, -1)


P, Q = chain(0, 1.2), chain(1, 0.8)


def pairs(keep_residual=True, seed=0):
    """Tokens 1 and 2 of many texts that begin with token 0, a draft of two tokens each, (DRAWS, 2)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    first = torch.zeros(DRAWS, dtype=torch.int64)
    draft_1 = torch.multinomial(Q[first], 1, generator=generator)[:, 0]
    draft_2 = torch.multinomial(Q[draft_1], 1, generator=generator)[:, 0]
    q_BKV = torch.stack((Q[first], Q[draft_1]), 1)
    p_BLV = torch.stack((P[first], P[draft_1], P[draft_2]), 1)
    lengths = torch.randint(0, 3, (DRAWS,), generator=generator)
    draft_BK = torch.stack((draft_1, draft_2), 1)
    kept, following = speculate(p_BLV, q_BKV, draft_BK, lengths, uniform(DRAWS, 2), uniform(DRAWS, 3))
    if not keep_residual:  # a mistake on purpose: what replaces a rejected token comes from p itself
        redrawn = speculation.draw(p_BLV[torch.arange(DRAWS), kept], uniform(DRAWS))
        following = torch.where(kept < lengths, redrawn, following)
    token_1 = torch.where(kept >= 1, draft_1, following)
    token_2 = torch.where(kept >= 2, draft_2, following)
    plain = torch.multinomial(P[token_1], 1, generator=generator)[:, 0]
    return torch.stack((token_1, torch.where(kept == 0, plain, token_2)), 1), kept, lengths


def chi_square(counts, p):
    expected = p * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def statistics(tokens):
    """Chi-square of token 1, and summed over token 1 of token 2."""
    one = chi_square(torch.bincount(tokens[:, 0], minlength=V).double(), P[0].double())
    counts = torch.bincount(tokens[:, 0] * V + tokens[:, 1], minlength=V * V).view(V, V).double()
    return one, sum(chi_square(counts[given], P[given].double()) for given in range(V))


def test_the_distribution_is_the_networks():
    tokens, kept, lengths = pairs()
    one, two = statistics(tokens)
    assert one < chi2.isf(1e-4, V - 1)
    assert two < chi2.isf(1e-4, V * (V - 1))
    # A token is kept with the probability that both distributions share (Leviathan et al., 2023, theorem 3.5).
    shared = torch.minimum(P[0], Q[0]).sum().item()
    assert (kept[lengths > 0] > 0).double().mean().item() == pytest.approx(shared, abs=0.005)


def test_without_the_residual_it_is_not():
    tokens, _, _ = pairs(keep_residual=False)
    one, two = statistics(tokens)
    assert one > 100 * chi2.isf(1e-4, V - 1)
    assert two > 10 * chi2.isf(1e-4, V * (V - 1))


def test_accept_stops_at_the_first_rejection_and_at_the_end_of_the_draft():
    p = torch.tensor([0.5, 0.5, 0.0]).expand(4, 3, 3)
    q = torch.tensor([0.5, 0.25, 0.25]).expand(4, 3, 3)
    draft = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 1, 0], [2, 0, 0]])
    lengths = torch.tensor([3, 3, 1, 3])
    assert accept(p, q, draft, lengths, torch.full((4, 3), 0.999)).tolist() == [3, 1, 1, 0]


def test_residual():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.5, 0.4]])
    assert torch.equal(residual(p, q), torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(residual(p, p), p)


def test_a_greedy_draft_is_kept_while_it_agrees():
    one_hot = torch.nn.functional.one_hot(torch.tensor([3, 1, 4, 1]), V).float()
    uniforms = torch.rand(4, 6, dtype=torch.float64)
    for draft, expected in (([3, 1, 4], [3, 1, 4, 1]), ([3, 2, 4], [3, 1]), ([0, 1, 4], [3]), ([3, 1, 0], [3, 1, 4])):
        q = torch.nn.functional.one_hot(torch.tensor(draft), V).float()
        assert judge(one_hot, [Proposal(draft, q)], uniforms) == [expected]
    other = Proposal([1], torch.nn.functional.one_hot(torch.tensor([1]), V).float())
    together = torch.cat((one_hot[1:3], one_hot)), torch.cat((uniforms[:2], uniforms))
    assert judge(together[0], [other, Proposal(draft, q)], together[1]) == [[1, 4], expected]


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(0.8), SamplingConfig(1.2, top_k=4, top_p=0.9, presence_penalty=1.0)]
)
@pytest.mark.parametrize("sampled", [True, False])
def test_verified_tokens_are_drawn_as_without_a_draft(sampling, sampled):
    """Through the sampler, filters and penalties on both sides: the second token given the first."""
    logits_p = torch.log(P[[0, 1, 2]]) * 1.3
    logits_q = torch.log(Q[[0, 1]])
    count = 8_000
    ours, theirs = BatchSampler(V), BatchSampler(V)
    for key in range(count):
        ours.add(key, sampling, [0], key)
        theirs.add(key, sampling, [0], 10**6 + key)
    drafts = []
    q_1 = theirs.distributions(logits_q[:1], [Row(0)])
    first = [own.token for own in theirs.draw(logits_q[:1].expand(count, -1), range(count))]
    table = theirs.distributions(
        logits_q[1:].expand(V, -1), [Row(first.index(t) if t in first else 0) for t in range(V)]
    )
    second = [own.token for own in theirs.draw(logits_q[1:].expand(count, -1), range(count))]
    for one, two in zip(first, second):
        drafts.append(Proposal([one, two], torch.stack((q_1[0], table[one])) if sampled else None))
    made = ours.verify(logits_p.repeat(count, 1), range(count), drafts)
    plain = BatchSampler(V)
    plain.add(0, sampling, [0], 0)
    p_1 = plain.distributions(logits_p[:1], [Row(0)])[0].double()
    counts = torch.bincount(torch.tensor([own[0].token for own in made]), minlength=V).double()
    possible = p_1 > 0
    assert not counts[~possible].any()
    assert chi_square(counts[possible], p_1[possible]) < chi2.isf(1e-4, int(possible.sum()) - 1)
    for given in possible.nonzero()[:, 0].tolist():
        after = [own[1].token for own in made if len(own) > 1 and own[0].token == given]
        if len(after) < 200:
            continue
        p_2 = plain.distributions(logits_p[1:2], [Row(0, (given,))])[0].double()
        counts, possible = torch.bincount(torch.tensor(after), minlength=V).double(), p_2 > 0
        assert not counts[~possible].any()
        assert chi_square(counts[possible], p_2[possible]) < chi2.isf(1e-4, int(possible.sum()) - 1)
    lengths = {len(own) for own in made}
    assert lengths == {1, 2, 3}
