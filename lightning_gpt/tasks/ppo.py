"""PPO on a language model, with every detail that the published implementations agree on.

1. Policy and reference start from one model; the critic from a reward model, the policy's trunk or a copy; its head
   from zero. 2. No dropout anywhere: the first update's ratio is exactly 1. 3. Rows are filled up on the right, where a
   causal network does not look, so positions need no correction and no pad token exists. 4. One temperature in drawing,
   in both log-probabilities and in the updates. 5. A position scores the token after it, in one type and mask always.
6. The score stands at an answer's last token; an answer without end may be penalised. 7. Every token's reward is
   -beta (log pi - log ref). 8. k1 in the reward; log-ratios clamped. 9. GAE with gamma 1, lambda 0.95, value 0 behind
   the end; returns before whitening; advantages whitened over all tokens of all ranks. 10. Clipped policy and value
   losses. 11. Fresh permutations, linear decay, clipped gradients, updates skipped where the ratio explodes and stopped
   where the policy has moved too far. 12. Means over the tokens of all ranks. 13. Validation takes likeliest answers.

Sources: Ziegler et al. (2019), Stiennon et al. (2020), Huang et al. (2024, "The N+ implementation details of RLHF with
PPO"), and the implementation details that Hugging Face collected of the former.
"""

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gpt.hub.reward_directory import load_reward_model
from lightning_gpt.nn import GPT
from lightning_gpt.nn.heads import ScalarHead
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.objectives.advantages import generalized_advantages, token_rewards, whiten
from lightning_gpt.objectives.kl import FixedKL, kl_terms
from lightning_gpt.objectives.log_probs import hidden_log_probs
from lightning_gpt.objectives.policy import clipped_policy_terms, clipped_value_terms, explained_variance
from lightning_gpt.optim import AdamW, OptimizerSpec
from lightning_gpt.rewards.protocol import Reward
from lightning_gpt.tasks.finetuning import without_dropout
from lightning_gpt.tasks.reinforcement import Experience, Reinforcement

LARGEST_RATIO = 10.0
"""A minibatch whose mean ratio is above it is not learnt from."""


class PPO(Reinforcement):
    """Proximal policy optimisation (Schulman et al., 2017) of answers to PromptData.

    Logs objective/kl (sum over an answer's tokens), objective/entropy, objective/scores, objective/non_score_reward,
    objective/rlhf_reward, objective/kl_coef, policy/approxkl_avg, policy/clipfrac_avg, policy/entropy_avg,
    loss/policy_avg, loss/value_avg, val/clipfrac_avg, val/ratio, val/explained_variance, val/num_eos_tokens (here val
    is the value function's), and in validation val/score, val/kl, val/mean_length, val/ended.

    Args:
        init_from: see Reinforcement, as are the settings that are not named here.
        kl: weight of the KL penalty (lightning_gpt.objectives.kl: FixedKL, AdaptiveKL).
        critic: shared = a head on the policy's own states; separate = a network of its own.
        critic_from: reward model that a separate critic starts from; null = a copy of the policy.
        clip: how far the ratio may leave 1 with effect.
        value_clip: how far a value may move with effect.
        value_weight: of the critic's loss in the sum.
        gamma: discount.
        lam: lambda of the advantages.
        whiten_rewards: to deviation 1, their mean kept.
        stop_at_kl: no more updates in an iteration once one has moved the policy by more than 1.5 times this (mean
            of policy/approxkl per token); null = never.
    """

    def __init__(
        self,
        init_from: str,
        reward: Reward,
        kl: FixedKL | None = None,
        epochs: int = 4,
        critic: Literal["shared", "separate"] = "shared",
        critic_from: str | None = None,
        clip: float = 0.2,
        value_clip: float = 0.2,
        value_weight: float = 0.1,
        gamma: float = 1.0,
        lam: float = 0.95,
        whiten_rewards: bool = False,
        stop_at_kl: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, reward, epochs=epochs, **kwargs)
        self.save_hyperparameters(ignore=["optimizer", "schedule", "reward", "kl"])
        if critic_from is not None and critic != "separate":
            raise ValueError("model.critic_from is a network of its own: set model.critic=separate")
        for name, value in (("clip", clip), ("value_clip", value_clip)):
            if value <= 0:
                raise ValueError(f"model.{name}={value} must be positive")
        for name, value in (("gamma", gamma), ("lam", lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"model.{name}={value} must be in [0, 1]")
        self.kl = kl or FixedKL()
        self.register_buffer("kl_coefficient", torch.tensor(float(self.kl.beta), dtype=torch.float64))
        self.critic_kind, self.critic_from = critic, critic_from
        self.clip, self.value_clip, self.value_weight = clip, value_clip, value_weight
        self.gamma, self.lam = gamma, lam
        self.whiten_rewards, self.stop_at_kl = whiten_rewards, stop_at_kl
        self._moved = 0.0

    @staticmethod
    def default_optimizer() -> OptimizerSpec:
        """AdamW with the larger epsilon of Huang et al. (2024)."""
        return AdamW(lr=3e-6, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0)

    def prepare_network(self, net: GPT) -> None:
        """Adds the critic: a head that starts at zero, and a network where it has one."""
        super().prepare_network(net)
        self.value_head = ScalarHead(net.config.n_embd, zero=True)
        if self.critic_kind == "separate":
            if self.critic_from is None:
                self.critic = deepcopy(net)
            else:
                critic, head, tokenizer, _ = load_reward_model(self.critic_from)
                if tokenizer.fingerprint != self.tokenizer.fingerprint:
                    raise ValueError(
                        f"model.critic_from={self.critic_from} has another tokenizer than {self.init_from}"
                    )
                self.critic, self.value_head = without_dropout(critic), head
            self.critic.requires_grad_(True).head.requires_grad_(self.critic.config.tie_embeddings)

    def configure_model(self) -> None:
        """As FineTuning; the critic goes where the network is, and learns."""
        if hasattr(self, "net"):
            return
        super().configure_model()
        self.value_head.to(self.device).requires_grad_(True)
        if hasattr(self, "critic"):
            self.critic.train().to(self.device)

    def forward_tokens(self, input_ids: Tensor, targets: Tensor) -> Experience:
        """log_probs, entropy and values (N, T), the shared trunk once."""
        hidden, config = self.net.hidden(input_ids), self.net.config
        head, cap = self.net.head.weight, config.logit_softcap
        log_probs, entropy = hidden_log_probs(hidden, head, targets, config.vocab_size, cap, self.sampling.temperature)
        states = self.critic.hidden(input_ids) if self.critic_kind == "separate" else hidden
        values = torch.where(targets != IGNORE_INDEX, self.value_head(states), 0.0)
        return {"log_probs": log_probs, "entropy": entropy, "values": values}

    def evaluate_answers(self, experience: Experience) -> None:
        """Rewards, advantages and returns; moves the KL coefficient."""
        mask = experience["targets"] != IGNORE_INDEX
        beta = float(self.kl_coefficient)
        kl = kl_terms(experience["log_probs"], experience["reference_log_probs"], "k1")
        rewards = token_rewards(experience["scores"], beta * kl, mask)
        reduce = self._sum_over_ranks if self.trainer.world_size > 1 else None
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, reduce=reduce)
        advantages, returns = generalized_advantages(rewards, experience["values"], mask, self.gamma, self.lam)
        experience |= {"advantages": whiten(advantages, mask, reduce=reduce), "returns": returns}
        number, penalty = len(mask), beta * kl.sum(-1)
        self.book("objective/non_score_reward", -penalty.sum(), number)
        self.book("objective/rlhf_reward", (experience["scores"] - penalty).sum(), number)
        self.book("objective/kl_coef", beta)
        self.book("val/explained_variance", explained_variance(experience["values"], returns, mask))
        mean_kl = torch.stack((kl.sum().double(), torch.tensor(float(number), device=kl.device).double()))
        total, count = (mean_kl if reduce is None else reduce(mean_kl)).tolist()
        self.kl_coefficient.fill_(self.kl.next(beta, total / count, int(count)))

    def loss(self, part: Experience, count: Tensor) -> Tensor:
        """Policy and critic in one sum, so that one backward pass serves both."""
        mask = part["targets"] != IGNORE_INDEX
        now = self.forward_tokens(part["input_ids"], part["targets"])
        policy = clipped_policy_terms(now["log_probs"], part["log_probs"], part["advantages"], mask, self.clip)
        value, value_clipped = clipped_value_terms(
            now["values"], part["values"], part["returns"], mask, self.value_clip
        )
        tokens = mask.sum()
        for name, terms in (
            ("policy/approxkl_avg", policy.approximate_kl),
            ("policy/clipfrac_avg", policy.clipped),
            ("policy/entropy_avg", now["entropy"]),
            ("loss/policy_avg", policy.loss),
            ("loss/value_avg", value),
            ("val/clipfrac_avg", value_clipped),
            ("val/ratio", policy.ratio),
        ):
            self.book(name, terms.sum(), tokens)
        self._moved = self._mean_over_ranks(policy.approximate_kl.sum(), tokens)
        if self._mean_over_ranks(policy.ratio.sum(), tokens) > LARGEST_RATIO:
            return 0.0 * now["log_probs"].sum() + 0.0 * now["values"].sum()
        return (policy.loss.sum() + self.value_weight * value.sum()) / count

    def stop_updates(self) -> bool:
        """Once the policy has moved too far from the one that drew."""
        return self.stop_at_kl is not None and self._moved > 1.5 * self.stop_at_kl

    def _sum_over_ranks(self, moments: Tensor) -> Tensor:
        torch.distributed.all_reduce(moments)
        return moments

    def _mean_over_ranks(self, total: Tensor, count: Tensor) -> float:
        both = torch.stack((total.detach().double(), count.double()))
        total, count = (both if self.trainer.world_size == 1 else self._sum_over_ranks(both)).tolist()
        return total / max(count, 1)
