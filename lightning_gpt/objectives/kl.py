"""How far the policy has moved from the reference: estimators from samples, and controllers of the penalty's weight.

Legend: B rows, T tokens. For tokens drawn from the policy, with l = log pi - log ref (Schulman, 2020):

| name | estimator | of KL(pi, ref) | as a loss |
|---|---|---|---|
| k1 | l | unbiased, may be negative | its gradient has mean zero: it pulls nowhere |
| k2 | l^2 / 2 | biased, low variance | has the gradient of the KL divergence |
| k3 | exp(-l) - 1 + l | unbiased, never negative | biased gradient (GRPO uses it) |

In a reward, k1 is exact.
"""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
LARGEST = 20.0
"""Log-ratios are clamped to this size before they are exponentiated."""


def kl_terms(log_probs_BT: Tensor, reference_BT: Tensor, estimator: Estimator = "k1") -> Tensor:
    """The estimator at every token, (B, T).

    Args:
        log_probs_BT: of the tokens under the policy.
        reference_BT: of the same under the reference.
        estimator: see the table above.
    """
    ratio_BT = log_probs_BT.float() - reference_BT.float()
    if estimator == "k1":
        return ratio_BT
    if estimator == "k2":
        return ratio_BT.square() / 2
    if estimator == "k3":
        ratio_BT = ratio_BT.clamp(-LARGEST, LARGEST)
        return torch.exp(-ratio_BT) - 1 + ratio_BT
    raise ValueError(f"estimator={estimator!r} is unknown: use k1, k2 or k3")


class FixedKL:
    """A constant weight of the penalty.

    Args:
        beta: the weight.
    """

    def __init__(self, beta: float = 0.05) -> None:
        if beta < 0:
            raise ValueError(f"kl.beta={beta} must be 0 (no penalty) or positive")
        self.beta = beta
        self.target: float | None = None

    def next(self, beta: float, kl: float, episodes: int) -> float:
        """The weight after an iteration."""
        return beta


class AdaptiveKL(FixedKL):
    """Moves the weight so that the divergence comes to a target (Ziegler et al., 2019, section 2.2).

    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) episodes / horizon)

    Args:
        beta: the first weight.
        target: KL divergence per answer (the sum over its tokens) in nats.
        horizon: episodes in which the weight may change by about a factor e^0.2.
    """

    def __init__(self, beta: float = 0.15, target: float = 6.0, horizon: int = 10_000) -> None:
        super().__init__(beta)
        if target <= 0 or horizon < 1:
            raise ValueError(f"kl.target={target} must be positive and kl.horizon={horizon} at least 1")
        self.target, self.horizon = target, horizon

    def next(self, beta: float, kl: float, episodes: int) -> float:
        """The weight after an iteration.

        Args:
            beta: the weight now.
            kl: mean divergence per answer in the iteration.
            episodes: answers of the iteration.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return beta * (1 + error * episodes / self.horizon)
