"""Online DPO: pairs are drawn from the policy itself and ordered by a reward (Guo et al., 2024)."""

from typing import Any

import torch
from torch import Tensor

from lightning_gpt.objectives.preference import PairLogProbs, PreferenceLoss, Sigmoid
from lightning_gpt.rewards.protocol import Reward
from lightning_gpt.tasks.reinforcement import Experience, Reinforcement


class OnlineDPO(Reinforcement):
    """Two answers to each prompt of PromptData; the one with the higher reward is the chosen one. Ties teach nothing.

    Logs reward, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected, objective/kl, frac_ties.

    Args:
        init_from: see Reinforcement, as are the settings that are not named here.
        loss: over pairs (lightning_gpt.objectives.preference).
    """

    def __init__(self, init_from: str, reward: Reward, loss: PreferenceLoss | None = None, **kwargs: Any) -> None:
        super().__init__(init_from, reward, **kwargs)
        self.save_hyperparameters(ignore=["optimizer", "schedule", "reward", "loss"])
        self.answers = 2
        self.preference = loss or Sigmoid()

    def evaluate_answers(self, experience: Experience) -> None:
        """Turns N answers into N / 2 pairs: (N / 2, 2, ...), the better answer first."""
        scores = experience["scores"].view(-1, 2)
        better = (scores[:, 1] > scores[:, 0]).long()
        order = torch.stack((better, 1 - better), dim=-1)  # which of the two is first, which second
        rows = torch.arange(len(scores), device=scores.device)[:, None]
        for name in ("input_ids", "targets", "scores", "reference_log_probs"):
            values = experience[name]
            experience[name] = values.view(len(scores), 2, *values.shape[1:])[rows, order]
        for name in ("ended", "log_probs", "entropy"):
            del experience[name]
        self.book("reward", scores.sum(), scores.numel())
        self.book("frac_ties", (scores[:, 0] == scores[:, 1]).sum(), len(scores))

    def count(self, minibatch: Experience) -> Tensor:
        """Pairs that are no tie."""
        scores = minibatch["scores"]
        return (scores[:, 0] > scores[:, 1]).sum().clamp(min=1)

    def loss(self, part: Experience, count: Tensor) -> Tensor:
        """Of the pairs that are no tie."""
        targets = part["targets"].flatten(0, 1)
        now = self.forward_tokens(part["input_ids"].flatten(0, 1), targets)
        policy, reference = now["log_probs"].sum(-1), part["reference_log_probs"].flatten(0, 1).sum(-1)
        if self.preference.averages:
            tokens = (targets != -100).sum(-1).clamp(min=1)
            policy, reference = policy / tokens, reference / tokens
        (chosen, rejected), (reference_chosen, reference_rejected) = policy.view(-1, 2).T, reference.view(-1, 2).T
        pair = PairLogProbs(chosen, rejected, reference_chosen, reference_rejected)
        differ = part["scores"][:, 0] > part["scores"][:, 1]
        rewards = self.preference.rewards(pair)
        for name, values in (
            ("rewards/margins", rewards[0] - rewards[1]),
            ("rewards/accuracies", (rewards[0] > rewards[1]).float()),
            ("logps/chosen", chosen.detach()),
            ("logps/rejected", rejected.detach()),
        ):
            self.book(name, (values * differ).sum(), differ.sum())
        return torch.where(differ, self.preference(pair), 0.0).sum() / count
