"""Models rated by battles: win rates, Elo, Bradley-Terry, and win rates with length held equal."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SHRINKAGE = 1e-2
"""Of the length model's weights: a hundredth of a squared unit of log-odds weighs as much as a battle."""
Z = 1.959964
"""Deviations of a normal distribution that hold 95%."""


@dataclass(frozen=True)
class Battle:
    """Two answers to one prompt before a judge."""

    first: str
    """Name of a model."""
    second: str
    score: float
    """Probability that the first is better: 1 won, 0 lost, 0.5 a tie."""
    length_difference: float = 0.0
    """Characters of the first answer minus those of the second."""


def win_rate(battles: Sequence[Battle], one: str, other: str) -> tuple[float, float, float, int]:
    """Share of battles that `one` wins against `other` (a tie counts half): value, 95% Wilson interval, n.

    Scores between 0 and 1 count as they are, which makes the interval a little too wide.
    """
    scores = [b.score for b in battles if (b.first, b.second) == (one, other)]
    scores += [1 - b.score for b in battles if (b.first, b.second) == (other, one)]
    n = len(scores)
    if not n:
        return math.nan, math.nan, math.nan, 0
    p, z = sum(scores) / n, Z
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n), n


def elo(battles: Sequence[Battle], k: float = 4.0, scale: float = 400.0, start: float = 1000.0) -> dict[str, float]:
    """Ratings after the battles in their order (Elo, 1978).

    R += k (score - expected), expected = 1 / (1 + 10^(d / scale)), d the opponent's lead.
    """
    ratings: dict[str, float] = {}
    for battle in battles:
        one, other = (ratings.setdefault(name, start) for name in (battle.first, battle.second))
        expected = 1 / (1 + 10 ** ((other - one) / scale))
        ratings[battle.first] = one + k * (battle.score - expected)
        ratings[battle.second] = other - k * (battle.score - expected)
    return ratings


def bradley_terry(battles: Sequence[Battle], scale: float = 400.0, start: float = 1000.0) -> dict[str, float]:
    """The ratings under which the battles are likeliest (Bradley & Terry, 1952), whatever their order; mean = start.

    A model that won or lost every battle has no finite rating: a hundredth of a tie with every opponent keeps it so.
    """
    from scipy.optimize import minimize

    names = sorted({name for battle in battles for name in (battle.first, battle.second)})
    place = {name: index for index, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for battle in battles:
        wins[place[battle.first], place[battle.second]] += battle.score
        wins[place[battle.second], place[battle.first]] += 1 - battle.score
    met = (wins + wins.T) > 0
    wins = wins + 0.005 * met

    def loss(strengths: np.ndarray) -> tuple[float, np.ndarray]:
        difference = strengths[:, None] - strengths[None, :]
        expected = 1 / (1 + np.exp(-difference))
        value = (wins * np.logaddexp(0, -difference)).sum()
        gradient = -(wins * (1 - expected)).sum(1) + (wins.T * expected).sum(1)
        return value, gradient

    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x
    found = (found - found.mean()) * scale / math.log(10) + start
    return dict(zip(names, found.tolist()))


Statistic = Callable[[Sequence[Battle]], dict[str, float]]


def bootstrap(
    battles: Sequence[Battle], statistic: Statistic = bradley_terry, draws: int = 200, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """A statistic of battles with its 95% interval over resampled battles: name -> (value, low, high).

    Battles are drawn with replacement, as many as there are; their order, which Elo's ratings depend on, is drawn too.
    A model that a drawing leaves out takes no part in it.

    Args:
        battles: at least one.
        statistic: such as bradley_terry or elo.
        draws: resamples.
        seed: of the drawings.
    """
    values = statistic(battles)
    generator = random.Random(seed)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(draws):
        for name, value in statistic(generator.choices(battles, k=len(battles))).items():
            drawn[name].append(value)
    return {name: (values[name], *np.percentile(of, [2.5, 97.5]).tolist()) for name, of in drawn.items()}


def length_controlled_win_rate(
    battles: Sequence[Battle], one: str, other: str, draws: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """How often `one` would win if both wrote alike at length (AlpacaEval 2; Dubois et al., 2024, eq. 2, without its
    term for the difficulty of a prompt): value and 95% bootstrap interval.

    A logistic model of the score on a constant and tanh(length difference / its deviation), fitted to the battles; what
    the constant alone predicts is the answer.
    """
    both = [(b.score, b.length_difference) for b in battles if (b.first, b.second) == (one, other)]
    both += [(1 - b.score, -b.length_difference) for b in battles if (b.first, b.second) == (other, one)]
    if not both:
        return math.nan, math.nan, math.nan
    rows = np.array(both)
    generator = np.random.default_rng(seed)
    drawn = [_at_equal_length(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(draws)]
    return (_at_equal_length(rows), *np.percentile(drawn, [2.5, 97.5]).tolist())


def _at_equal_length(rows: np.ndarray) -> float:
    """Newton's method on the logistic model; a little shrinkage keeps it finite when one side won every battle.

    Args:
        rows: (n, 2) score and length difference.
    """
    score, length = rows.T
    spread = length.std()
    lengths = np.tanh(length / spread) if spread > 0 else np.zeros_like(length)
    design = np.stack((np.ones_like(lengths), lengths), axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (chance - score) + SHRINKAGE * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + SHRINKAGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step * min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + math.exp(-weights[0])))
