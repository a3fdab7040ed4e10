"""Reinforcement learning without a critic: an answer is compared with the others to its prompt."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.objectives.advantages import group_advantages, leave_one_out_advantages
from lightning_gpt.objectives.kl import Estimator, kl_terms
from lightning_gpt.objectives.policy import clipped_policy_terms
from lightning_gpt.rewards.protocol import Reward
from lightning_gpt.tasks.reinforcement import Experience, Reinforcement

Normalization = Literal["answer", "token", "constant"]


class GRPO(Reinforcement):
    """Group relative policy optimisation (Shao et al., 2024) of answers to PromptData.

    Logs reward, reward_std (within groups), frac_reward_zero_std, kl, completions/mean_length and clipped_ratio,
    policy/approxkl_avg, policy/clipfrac_avg, policy/entropy_avg, objective/kl, and in validation val/score, val/kl.

    Args:
        init_from: see Reinforcement, as are the settings that are not named here.
        answers: to each prompt, at least 2.
        beta: weight of the KL term in the loss; 0 = none.
        kl_estimator: of that term; GRPO's is k3, k2 has the exact gradient.
        correct_kl: multiply the term by the ratio, which makes the gradient of k3 exact after the policy has moved
            (DeepSeek-V3.2, 2025).
        advantage: group = score minus the group's mean, over its deviation; centred = not divided (Dr. GRPO).
        normalization: answer = mean over an answer's tokens, then over answers (GRPO); token = over all tokens (DAPO);
            constant = sum over tokens / max_new_tokens, then over answers (Dr. GRPO).
        clip: how far the ratio may fall below 1 with effect.
        clip_high: how far it may rise above; null = as far.
    """

    def __init__(
        self,
        init_from: str,
        reward: Reward,
        answers: int = 8,
        beta: float = 0.04,
        kl_estimator: Estimator = "k3",
        correct_kl: bool = False,
        advantage: Literal["group", "centred"] = "group",
        normalization: Normalization = "answer",
        clip: float = 0.2,
        clip_high: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, reward, **kwargs)
        self.save_hyperparameters(ignore=["optimizer", "schedule", "reward"])
        if answers < 2:
            raise ValueError(f"model.answers={answers}: an answer is compared with others to its prompt, use 2 or more")
        if beta < 0:
            raise ValueError(f"model.beta={beta} must be 0 (no KL term) or positive")
        self.answers = answers
        self.beta, self.kl_estimator, self.correct_kl = beta, kl_estimator, correct_kl
        self.advantage, self.normalization = advantage, normalization
        self.clip, self.clip_high = clip, clip_high

    def advantages(self, scores_NG: Tensor, experience: Experience) -> Tensor:
        """Of each answer, (N, G)."""
        return group_advantages(scores_NG, scale=self.advantage == "group")

    def evaluate_answers(self, experience: Experience) -> None:
        """Compares the answers to each prompt."""
        scores_NG = experience["scores"].view(-1, self.answers)
        experience["advantages"] = self.advantages(scores_NG, experience).reshape(-1, 1)
        spread_N = scores_NG.std(-1)
        self.book("reward", scores_NG.sum(), scores_NG.numel())
        self.book("reward_std", spread_N.sum(), len(spread_N))
        self.book("frac_reward_zero_std", (spread_N < 1e-8).sum(), len(spread_N))

    def count(self, minibatch: Experience) -> Tensor:
        """Tokens, or answers where each answer counts alike."""
        if self.normalization == "token":
            return super().count(minibatch)
        return torch.tensor(len(minibatch["targets"]), device=self.device)

    def loss(self, part: Experience, count: Tensor) -> Tensor:
        """Clipped policy loss and the KL term."""
        mask = part["targets"] != IGNORE_INDEX
        now = self.forward_tokens(part["input_ids"], part["targets"])
        policy = clipped_policy_terms(
            now["log_probs"], part["log_probs"], part["advantages"], mask, self.clip, self.clip_high
        )
        losses, tokens = policy.loss, mask.sum()
        if self.beta:
            kl = torch.where(mask, kl_terms(now["log_probs"], part["reference_log_probs"], self.kl_estimator), 0.0)
            if self.correct_kl:
                kl = kl * torch.where(mask, now["log_probs"] - part["log_probs"], 0.0).exp()
            losses = losses + self.beta * kl
            self.book("kl", kl.detach().sum(), tokens)
        self.book("policy/approxkl_avg", policy.approximate_kl.sum(), tokens)
        self.book("policy/clipfrac_avg", policy.clipped.sum(), tokens)
        self.book("policy/entropy_avg", now["entropy"].sum(), tokens)
        if self.normalization == "answer":
            losses = losses / mask.sum(-1, keepdim=True).clamp(min=1)
        elif self.normalization == "constant":
            losses = losses / self.max_new_tokens
        return losses.sum() / count


class RLOO(GRPO):
    """REINFORCE with the mean of the other answers as baseline (Ahmadian et al., 2024); the KL penalty is part of the
    score, where it is exact (k1). Settings as GRPO; sequences count alike, each as the sum of its tokens."""

    def advantages(self, scores_NG: Tensor, experience: Experience) -> Tensor:
        """Leave-one-out, of scores minus beta times the answer's log-ratio."""
        ratio_N = (experience["log_probs"] - experience["reference_log_probs"]).sum(-1)
        return leave_one_out_advantages(scores_NG - self.beta * ratio_N.view_as(scores_NG))

    def loss(self, part: Experience, count: Tensor) -> Tensor:
        """The clipped policy loss alone: sums over an answer's tokens."""
        mask = part["targets"] != IGNORE_INDEX
        now = self.forward_tokens(part["input_ids"], part["targets"])
        policy = clipped_policy_terms(
            now["log_probs"], part["log_probs"], part["advantages"], mask, self.clip, self.clip_high
        )
        tokens = mask.sum()
        self.book("policy/approxkl_avg", policy.approximate_kl.sum(), tokens)
        self.book("policy/clipfrac_avg", policy.clipped.sum(), tokens)
        self.book("policy/entropy_avg", now["entropy"].sum(), tokens)
        return policy.loss.sum() / count
