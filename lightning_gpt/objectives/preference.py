"""Losses over pairs of answers. Legend: B pairs.

Everything is a function of the answers' log-probabilities, summed over tokens (averaged where a loss says so), under
the policy and, for most, a frozen reference:

    h = (log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected))

| loss | on a pair | source |
|---|---|---|
| Sigmoid | -log s(beta h) | DPO, Rafailov et al., 2023 |
| Sigmoid with smoothing e | -(1 - e) log s(beta h) - e log s(-beta h) | cDPO, Mitchell, 2023 |
| Robust | (that with -e) / (1 - 2e) | Chowdhury et al., 2024 |
| Hinge | relu(1 - beta h) | SLiC, Zhao et al., 2023 |
| IPO | (h - 1 / (2 beta))^2 | Azar et al., 2023 |
| SimPO | -log s(beta d - gamma), d of mean log-probabilities | Meng et al., 2024 |
| ORPO | NLL(chosen) - beta log s(log-odds ratio) | Hong et al., 2024 |
| PreferredOnly | -log pi(chosen) | preferred-FT, a baseline of the DPO paper |
| Unlikelihood | -log pi(chosen) + alpha log pi(rejected) | Welleck et al., 2019; a baseline of the DPO paper |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities of the answers of B pairs, (B,) each, in float32; of the reference where a loss needs it."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    margins: Tensor | None = None
    """By how much the chosen should win, in units of beta h; None = 0."""

    @property
    def difference(self) -> Tensor:
        """h."""
        assert self.reference_chosen is not None and self.reference_rejected is not None
        return (self.chosen - self.rejected) - (self.reference_chosen - self.reference_rejected)


class PreferenceLoss(ABC):
    """A loss over pairs, chosen by name in YAML (lightning_gpt.objectives.preference.Sigmoid and its siblings).

    Args:
        beta: strength of the pull towards the reference, or of the preference.
    """

    needs_reference = True
    """Whether the reference's log-probabilities enter."""
    averages = False
    """Whether log-probabilities are means over an answer's tokens instead of sums."""

    def __init__(self, beta: float = 0.1) -> None:
        if not (beta > 0 and math.isfinite(beta)):
            raise ValueError(f"loss.beta={beta} must be positive")
        self.beta = beta

    @abstractmethod
    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""

    def rewards(self, pair: PairLogProbs) -> tuple[Tensor, Tensor]:
        """Implicit rewards of chosen and rejected, (B,) each: beta (log pi - log ref), or beta log pi."""
        if not self.needs_reference:
            return self.beta * pair.chosen.detach(), self.beta * pair.rejected.detach()
        chosen = pair.chosen - pair.reference_chosen
        rejected = pair.rejected - pair.reference_rejected
        return self.beta * chosen.detach(), self.beta * rejected.detach()


class Sigmoid(PreferenceLoss):
    """DPO; with smoothing cDPO, for labels that are wrong with that probability.

    Args:
        beta: of the KL penalty whose optimum is learnt.
        label_smoothing: e, in [0, 0.5).
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)
        self.smoothing = _smoothing(label_smoothing)

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        x_B = _with_margin(self.beta * pair.difference, pair)
        return -(1 - self.smoothing) * F.logsigmoid(x_B) - self.smoothing * F.logsigmoid(-x_B)


class Robust(Sigmoid):
    """An unbiased estimate of DPO's loss without the noise: labels are wrong with probability e (label_smoothing)."""

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        x_B, e = _with_margin(self.beta * pair.difference, pair), self.smoothing
        return (-(1 - e) * F.logsigmoid(x_B) + e * F.logsigmoid(-x_B)) / (1 - 2 * e)


class Hinge(PreferenceLoss):
    """SLiC's hinge on the normalised likelihood."""

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        return F.relu(1 - _with_margin(self.beta * pair.difference, pair))


class IPO(PreferenceLoss):
    """Regresses h on 1 / (2 beta), so that certain preferences do not push without end.

    Args:
        beta: tau of the paper.
        average: take log-probabilities per token, as its authors came to recommend.
    """

    def __init__(self, beta: float = 0.1, average: bool = True) -> None:
        super().__init__(beta)
        self.averages = average

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        return (pair.difference - 1 / (2 * self.beta)).square()


class SimPO(PreferenceLoss):
    """Mean log-probabilities as rewards, no reference.

    Args:
        beta: scale of the rewards (2 to 10).
        gamma: margin that the chosen should win by.
    """

    needs_reference, averages = False, True

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(beta)
        self.gamma = gamma

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        return -F.logsigmoid(_with_margin(self.beta * (pair.chosen - pair.rejected) - self.gamma, pair))


class ORPO(PreferenceLoss):
    """Fine-tuning on the chosen and a penalty on the odds of the rejected, no reference.

    Args:
        beta: weight of the odds ratio (lambda of the paper).
    """

    needs_reference, averages = False, True

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        log_odds_B = (pair.chosen - pair.rejected) - (log1mexp(pair.chosen) - log1mexp(pair.rejected))
        return -pair.chosen - self.beta * F.logsigmoid(log_odds_B)


class PreferredOnly(PreferenceLoss):
    """Fine-tuning on the chosen answers: what pairs teach when the rejected are thrown away."""

    needs_reference = False

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        return -pair.chosen


class Unlikelihood(PreferenceLoss):
    """Makes the chosen likelier and the rejected less likely, without a limit.

    Args:
        beta: for the rewards that are logged.
        alpha: weight of the rejected, in [0, 1].
    """

    needs_reference = False

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        if not 0 <= alpha <= 1:
            raise ValueError(f"loss.alpha={alpha} must be in [0, 1]")
        self.alpha = alpha

    def __call__(self, pair: PairLogProbs) -> Tensor:
        """Losses (B,)."""
        return -pair.chosen + self.alpha * pair.rejected


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation (Maechler, 2012); just below 0 it and its gradient stay finite.

    Each branch sees arguments of its own side only: a gradient of the other would be 0 x inf.
    """
    x, middle = x.clamp(max=-1e-7), -math.log(2)
    far, near = x.clamp(max=middle), x.clamp(min=middle)
    return torch.where(x < middle, torch.log1p(-far.exp()), torch.log(-torch.expm1(near)))


def _with_margin(x_B: Tensor, pair: PairLogProbs) -> Tensor:
    return x_B if pair.margins is None else x_B - pair.margins


def _smoothing(value: float) -> float:
    if not 0 <= value < 0.5:
        raise ValueError(f"loss.label_smoothing={value} is the share of wrong labels: use 0 <= label_smoothing < 0.5")
    return value
