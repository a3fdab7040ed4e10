"""Objectives against exact answers: sums over all texts, brute force, peers' functions."""

import math

import pytest
import torch

from lightning_gpt.objectives import preference
from lightning_gpt.objectives.advantages import (
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)
from lightning_gpt.objectives.enumeration import (
    all_texts,
    best_of_n,
    best_policy,
    best_reward_at,
    frontier,
    kl_divergence,
    text_log_probs,
)
from lightning_gpt.objectives.kl import AdaptiveKL, FixedKL, kl_terms
from lightning_gpt.objectives.log_probs import (
    entropy,
    hidden_log_probs,
    plain_hidden_log_probs,
    sequence_log_probs,
    token_log_probs,
)
from lightning_gpt.objectives.policy import clipped_policy_terms, clipped_value_terms, explained_variance
from lightning_gpt.objectives.process import solution_scores, step_losses
from lightning_gpt.objectives.reward import accuracy, accuracy_ceiling, calibration, pairwise_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_log_probs_are_trls():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits, targets = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    torch.testing.assert_close(token_log_probs(logits, targets), selective_log_softmax(logits, targets))
    torch.testing.assert_close(entropy(logits), entropy_from_logits(logits))
    targets[0, 2:] = -100
    log_probs = token_log_probs(logits, targets)
    assert (log_probs[0, 2:] == 0).all()
    assert sequence_log_probs(log_probs, targets, mean=True)[0] == pytest.approx(log_probs[0, :2].mean().item())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("kept", "chunk"), [(1 << 26, None), (0, 64), (64 * 30, 64)])
def test_the_lean_form_is_the_plain_one(monkeypatch, softcap, kept, chunk):
    from lightning_gpt.objectives import log_probs

    monkeypatch.setattr(log_probs, "KEPT_LOGITS", kept)
    targets = torch.randint(0, 30, (4, 70))
    targets[torch.rand(4, 70) < 0.4] = -100
    found = []
    for form in (plain_hidden_log_probs, hidden_log_probs):
        torch.manual_seed(1)
        hidden, weight = torch.randn(4, 70, 8, requires_grad=True), torch.randn(32, 8, requires_grad=True)
        lean = {} if form is plain_hidden_log_probs else {"chunk": chunk}
        values, uncertain = form(hidden, weight, targets, 30, softcap, temperature=0.7, **lean)
        (values * torch.arange(70.0)).sum().backward()
        found.append((values.detach(), uncertain, hidden.grad, weight.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-5)


# --- KL --------------------------------------------------------------------------------------------------------------


def test_estimators_in_the_value_and_in_the_gradient():
    """k1 and k3 have the right mean; as losses over drawn texts k2 has the gradient of KL, k1 none, k3 another."""
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(9, dtype=torch.float64), -1)
    log_p = torch.log_softmax(logits, -1)
    exact = kl_divergence(log_p, reference)
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    for name in ("k1", "k3"):
        value = (log_p.exp() * kl_terms(log_p, reference, name).double()).sum()
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    gradients = {}
    for name in ("k1", "k2", "k3"):
        loss = (log_p.exp().detach() * kl_terms(log_p, reference, name).double()).sum()
        (gradients[name],) = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(gradients["k2"], wanted, atol=1e-6, rtol=1e-5)
    assert gradients["k1"].abs().max() < 1e-6
    assert (gradients["k3"] - wanted).abs().max() > 0.01
    with pytest.raises(ValueError, match="estimator='k4'"):
        kl_terms(log_p, reference, "k4")


def test_controllers():
    control = AdaptiveKL(0.15, target=6, horizon=10_000)
    assert control.next(0.1, 6.0, 64) == pytest.approx(0.1)
    assert control.next(0.1, 60.0, 100) == pytest.approx(0.1 * (1 + 0.2 * 0.01))
    assert control.next(0.1, 5.7, 100) == pytest.approx(0.1 * (1 - 0.05 * 0.01))
    assert FixedKL(0.3).next(0.3, 99.0, 5) == 0.3
    for make in (lambda: FixedKL(-1), lambda: AdaptiveKL(0.1, target=0), lambda: AdaptiveKL(0.1, horizon=0)):
        with pytest.raises(ValueError, match=r"kl\."):
            make()


# --- advantages ------------------------------------------------------------------------------------------------------


def test_gae_is_the_double_sum():
    rewards, values = torch.randn(2, 4, 9, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 1, 0])
    first = torch.tensor([0, 3, 2, 0])  # answers begin behind their prompts
    place = torch.arange(9)
    mask = (place >= first[:, None]) & (place < (first + lengths)[:, None].clamp(max=9))
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)):
        found, returns = generalized_advantages(rewards, values, mask, gamma, lam)
        for row in range(4):
            steps = mask[row].nonzero()[:, 0].tolist()
            for k, t in enumerate(steps):
                total = 0.0
                for ahead, s in enumerate(steps[k:]):
                    following = values[row, s + 1] if s + 1 in steps else 0.0
                    total += (gamma * lam) ** ahead * (rewards[row, s] + gamma * following - values[row, s])
                assert found[row, t].item() == pytest.approx(float(total), abs=1e-12)
                assert returns[row, t].item() == pytest.approx(float(total + values[row, t]), abs=1e-12)
        assert (found[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_rewards_stand_at_the_last_token():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    found = token_rewards(torch.tensor([5.0, 7.0, 9.0]), torch.full((3, 4), 0.5), mask)
    assert found.tolist() == [[0, -0.5, 4.5, 0], [0, 0, -0.5, 6.5], [0, 0, 0, 0]]


def test_whitening_over_ranks_is_whitening_over_all():
    values, mask = torch.randn(6, 5) * 3 + 2, torch.rand(6, 5) < 0.7
    white = whiten(values, mask)
    kept = white[mask]
    assert abs(kept.mean()) < 1e-6 and kept.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()
    moved = whiten(values, mask, shift_mean=False)[mask]
    assert moved.mean().item() == pytest.approx(values[mask].mean().item(), abs=1e-5)
    moments = []
    for rows in (slice(0, 2), slice(2, 6)):  # what each rank would hand in
        whiten(values[rows], mask[rows], reduce=lambda m: moments.append(m) or m)
    both = torch.cat(
        [whiten(values[rows], mask[rows], reduce=lambda m: sum(moments)) for rows in (slice(0, 2), slice(2, 6))]
    )
    torch.testing.assert_close(both, white)


def test_groups():
    scores = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    torch.testing.assert_close(group_advantages(scores, scale=False), torch.tensor([[-2.0, 0, 2], [0, 0, 0]]))
    torch.testing.assert_close(group_advantages(scores)[0], torch.tensor([-2.0, 0, 2]) / (2 + 1e-4))
    out = leave_one_out_advantages(scores)
    assert out[0].tolist() == [1 - 4, 3 - 3, 5 - 2] and out[1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="at least two answers"):
        leave_one_out_advantages(scores[:, :1])


# --- policy and value ------------------------------------------------------------------------------------------------


def test_the_surrogate_at_ratio_one_is_the_policy_gradient():
    logits = torch.randn(3, 4, 7, requires_grad=True)
    targets, advantages = torch.randint(0, 7, (3, 4)), torch.randn(3, 4)
    mask = torch.rand(3, 4) < 0.8
    log_probs = token_log_probs(logits, targets)
    terms = clipped_policy_terms(log_probs, log_probs.detach(), advantages, mask)
    assert (terms.ratio[mask] == 1).all() and terms.clipped.sum() == 0 and terms.approximate_kl.sum() == 0
    (found,) = torch.autograd.grad(terms.loss.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(log_probs * advantages)[mask].sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_clipping_is_the_pessimistic_branch():
    ratio = torch.tensor([[0.5, 0.9, 1.1, 1.5]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    for sign, losses, clipped in (
        (1.0, [-0.5, -0.9, -1.1, -1.2], [0, 0, 0, 1]),
        (-1.0, [0.8, 0.9, 1.1, 1.5], [1, 0, 0, 0]),
    ):
        terms = clipped_policy_terms(ratio.log(), torch.zeros(1, 4), torch.full((1, 4), sign), mask)
        torch.testing.assert_close(terms.loss, torch.tensor([losses]))
        assert terms.clipped.tolist() == [clipped]
    wide = clipped_policy_terms(ratio.log(), torch.zeros(1, 4), torch.ones(1, 4), mask, 0.2, 0.6)
    assert wide.loss[0, 3].item() == pytest.approx(-1.5)
    value, held = clipped_value_terms(
        torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), mask[:, :2]
    )
    torch.testing.assert_close(value, torch.tensor([[0.5 * 0.8**2, 0.5 * 0.9**2]]))
    assert held.tolist() == [[1, 0]]
    returns = torch.randn(2, 5)
    every = torch.ones(2, 5, dtype=torch.bool)
    assert explained_variance(returns, returns, every) == 1 and explained_variance(returns * 0, returns, every) == 0


# --- preferences and rewards -----------------------------------------------------------------------------------------


def test_dpo_on_all_preferences_finds_the_best_policy():
    """On every pair with its Bradley-Terry probability the optimum is reference exp(r / beta) / Z."""
    rewards, reference = torch.randn(6).double(), torch.log_softmax(torch.randn(6).double(), -1)
    beta = 0.5
    first, second = torch.combinations(torch.arange(6)).T
    probability = torch.sigmoid(rewards[first] - rewards[second])
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-15)
    loss = preference.Sigmoid(beta)

    def closure():
        optimizer.zero_grad()
        log_p = torch.log_softmax(logits, -1)
        total = sum(
            (weight * loss(preference.PairLogProbs(log_p[w], log_p[l], reference[w], reference[l]))).sum()
            for weight, w, l in ((probability, first, second), (1 - probability, second, first))
        )
        total.backward()
        return total

    optimizer.step(closure)
    torch.testing.assert_close(
        torch.log_softmax(logits.detach(), -1), best_policy(reference, rewards, beta), atol=5e-5, rtol=0
    )


def test_smoothed_losses_mean_what_they_say():
    pair = preference.PairLogProbs(*torch.randn(4, 20).double())
    swapped = preference.PairLogProbs(pair.rejected, pair.chosen, pair.reference_rejected, pair.reference_chosen)
    plain = preference.Sigmoid(0.3)
    torch.testing.assert_close(
        preference.Sigmoid(0.3, label_smoothing=0.2)(pair), 0.8 * plain(pair) + 0.2 * plain(swapped)
    )
    robust = preference.Robust(0.3, label_smoothing=0.2)
    torch.testing.assert_close(0.8 * robust(pair) + 0.2 * robust(swapped), plain(pair))  # unbiased under the noise
    assert preference.IPO(0.25)(preference.PairLogProbs(*torch.tensor([[3.0], [1.0], [0.0], [0.0]]))).item() == 0
    chosen, rejected = preference.PreferredOnly()(pair), preference.Unlikelihood(alpha=1.0)(pair)
    torch.testing.assert_close(rejected, chosen + pair.rejected)
    for bad in (
        lambda: preference.Sigmoid(0),
        lambda: preference.Robust(0.1, 0.5),
        lambda: preference.Unlikelihood(alpha=2),
    ):
        with pytest.raises(ValueError, match=r"loss\."):
            bad()


def test_a_memorised_answer_still_has_a_gradient():
    chosen, rejected = torch.tensor([-1e-9, -1.0], requires_grad=True), torch.tensor([-2.0, -1e-9])
    preference.ORPO()(preference.PairLogProbs(chosen, rejected)).sum().backward()
    assert torch.isfinite(chosen.grad).all()


def test_rewards_learnt_from_drawn_labels_reach_the_ceiling():
    true = torch.randn(4000, 2).double() * 1.5
    wins = torch.rand(4000).double() < torch.sigmoid(true[:, 0] - true[:, 1])
    chosen = torch.where(wins, true[:, 0], true[:, 1])
    rejected = torch.where(wins, true[:, 1], true[:, 0])
    ceiling = accuracy_ceiling(chosen, rejected)
    assert accuracy(chosen, rejected).item() == pytest.approx(ceiling.item(), abs=0.02)
    predicted, right, count = calibration(chosen - rejected)
    full = count > 100
    torch.testing.assert_close(predicted[full], right[full], atol=0.06, rtol=0)
    assert pairwise_loss(chosen, rejected).mean() < pairwise_loss(1.5 * chosen, 1.5 * rejected).mean()
    assert pairwise_loss(chosen, rejected).mean() < pairwise_loss(0.6 * chosen, 0.6 * rejected).mean()
    torch.testing.assert_close(
        pairwise_loss(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.5]), 0.1),
        torch.tensor([math.log(2) + 0.1 * 2.25]),
    )


def test_steps():
    logits = torch.tensor([[0.0, 2.0, 5.0, -1.0], [3.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[-100, 1, -100, 0], [1, -100, -100, -100]])
    losses = step_losses(logits, labels)
    expected = -torch.nn.functional.logsigmoid(torch.tensor([2.0, 1.0, 3.0]))
    torch.testing.assert_close(losses[labels != -100], expected)
    assert (losses[labels == -100] == 0).all()
    ends = labels != -100
    p = torch.sigmoid(logits)
    assert solution_scores(logits, ends).exp()[0].item() == pytest.approx((p[0, 1] * p[0, 3]).item())
    assert solution_scores(logits, ends, "min").exp()[0].item() == pytest.approx(p[0, 3].item())
    assert solution_scores(logits, ends, "last").exp()[1].item() == pytest.approx(p[1, 0].item())


# --- all texts -------------------------------------------------------------------------------------------------------


def test_exact_numbers_of_a_language_model(tiny_model):
    from lightning_gpt.hub import open_model

    net, _ = open_model(tiny_model)
    texts = all_texts(4, 3)
    assert len(texts) == 64 and len({tuple(row) for row in texts.tolist()}) == 64
    log_p = text_log_probs(lambda ids: net(ids), 7, texts).detach().double()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    rewards = torch.randn(64).double()
    points = frontier(log_p, rewards, [4.0, 1.0, 0.3])
    for kl, reward in points:
        assert best_reward_at(log_p, rewards, kl) == pytest.approx(reward, abs=1e-6)
        for _ in range(10):  # no other policy is above it
            other = torch.log_softmax(log_p + torch.randn(64) * 0.5 + rewards * torch.rand(1).item() * 4, -1)
            reached = float(other.exp() @ rewards)
            assert reached <= best_reward_at(log_p, rewards, float(kl_divergence(other, log_p))) + 1e-9
    for n in (1, 2, 8):
        drawn = best_of_n(log_p, rewards, n)
        assert drawn.exp().sum().item() == pytest.approx(1, abs=1e-6)
        assert float(kl_divergence(drawn, log_p)) <= math.log(n) - (n - 1) / n + 1e-6
        samples = torch.multinomial(log_p.exp(), 20_000 * n, replacement=True).view(-1, n)
        best = rewards[samples].amax(-1).mean().item()
        assert float(drawn.exp() @ rewards) == pytest.approx(best, abs=0.03)
    scaled = best_reward_at(log_p, rewards * 1e6, 0.5)
    assert scaled == pytest.approx(1e6 * best_reward_at(log_p, rewards, 0.5), rel=1e-6)
    assert torch.isfinite(entropy(torch.tensor([0.0, -math.inf, 1.0])))
    with pytest.raises(ValueError, match="too many to enumerate"):
        all_texts(100, 5)
