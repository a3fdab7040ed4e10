"""Exact numbers of a language model small enough to write down all its texts. Legend: S texts, T tokens, V vocabulary.

With V tokens and texts of T tokens there are S = V^T of them. Then KL divergences, expected rewards and the best policy
under a KL penalty are sums, not estimates, and learning algorithms can be held to the truth.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.objectives.log_probs import token_log_probs


def all_texts(vocab_size: int, length: int) -> Tensor:
    """(S, T) int64, every text once, in lexical order.

    Raises:
        ValueError: more than two million.
    """
    count = vocab_size**length
    if count > 2_000_000:
        raise ValueError(f"{vocab_size}^{length} = {count:,} texts are too many to enumerate")
    powers = vocab_size ** torch.arange(length - 1, -1, -1)
    return torch.arange(count)[:, None] // powers % vocab_size


def text_log_probs(logits: Callable[[Tensor], Tensor], start: int, texts_ST: Tensor) -> Tensor:
    """log p of every text behind one start token, (S,).

    Args:
        logits: the model, (S, T) ids -> (S, T, V).
        start: the token before the text.
        texts_ST: of `all_texts`; the model's other tokens are taken for impossible.
    """
    inputs_ST = torch.cat((torch.full_like(texts_ST[:, :1], start), texts_ST[:, :-1]), dim=1)
    V = int(texts_ST.max()) + 1
    return token_log_probs(logits(inputs_ST)[..., :V], texts_ST).sum(-1)


def kl_divergence(log_p_S: Tensor, log_q_S: Tensor) -> Tensor:
    """KL(p, q) in nats."""
    return (log_p_S.exp() * (log_p_S - log_q_S)).sum()


def best_policy(log_reference_S: Tensor, rewards_S: Tensor, beta: float) -> Tensor:
    """log of reference exp(reward / beta) / Z, (S,): what maximises E[reward] - beta KL(policy, reference)."""
    return torch.log_softmax(log_reference_S + rewards_S / beta, dim=-1)


def frontier(log_reference_S: Tensor, rewards_S: Tensor, betas: list[float]) -> list[tuple[float, float]]:
    """(KL, expected reward) of the best policy at each beta: no policy of that KL has a higher reward."""
    points = []
    for beta in betas:
        log_p_S = best_policy(log_reference_S.double(), rewards_S.double(), beta)
        points.append(
            (float(kl_divergence(log_p_S, log_reference_S.double())), float(log_p_S.exp() @ rewards_S.double()))
        )
    return points


def best_reward_at(log_reference_S: Tensor, rewards_S: Tensor, kl: float) -> float:
    """The highest expected reward of any policy with that KL divergence, by bisection over beta."""
    spread = float(rewards_S.max() - rewards_S.min())
    if spread == 0:
        return float(rewards_S[0])
    low, high = math.log(spread) - 12, math.log(spread) + 12  # log beta; the divergence falls as it rises
    for _ in range(60):
        middle = (low + high) / 2
        here, _ = frontier(log_reference_S, rewards_S, [math.exp(middle)])[0]
        low, high = (middle, high) if here > kl else (low, middle)
    return frontier(log_reference_S, rewards_S, [math.exp(high)])[0][1]


def best_of_n(log_reference_S: Tensor, rewards_S: Tensor, n: int) -> Tensor:
    """log-probabilities (S,) of the best of n texts drawn from the reference, ties broken evenly.

    A text is drawn with P(all n at most as good) - P(all n worse), shared among equally good ones by probability.
    """
    p_S, rewards_S = log_reference_S.double().exp(), rewards_S.double()
    levels, level_S = rewards_S.unique(return_inverse=True)
    mass_L = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level_S, p_S)
    reached_L = mass_L.cumsum(0).clamp(max=1)
    chosen_L = reached_L**n - torch.cat((reached_L.new_zeros(1), reached_L[:-1])) ** n
    return torch.log((chosen_L / mass_L)[level_S] * p_S)
