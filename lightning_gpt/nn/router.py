"""Which token goes to which expert. Legend: N tokens, C width, E experts, K experts a token."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gpt.nn.moe_config import MoEConfig


class Route(NamedTuple):
    """Pairs of a token and an expert, M of them."""

    token_M: Tensor
    """int64, which token."""
    expert_M: Tensor
    """int64, which expert."""
    gate_M: Tensor
    """float32, weight of the expert's output; 0 when dropped."""
    kept_M: Tensor | None
    """bool, False = dropped for want of capacity; None = all are kept."""
    balance_loss: Tensor
    """Scalar, unweighted; at least 1 for the balance loss of Switch, 0 when there is none."""
    z_loss: Tensor
    """Scalar, unweighted."""
    entropy: Tensor
    """Scalar: mean entropy of the tokens' scores in nats; ln E = undecided."""


class Router(nn.Module):
    """A linear layer and a choice, in float32 whatever the precision (Fedus et al., 2021, section 2.4)."""

    def __init__(self, width: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(width, config.experts, bias=False)
        if config.balance == "bias":
            self.register_buffer("balance_bias_E", torch.zeros(config.experts))

    def forward(self, x_NC: Tensor, keep_all: bool = False) -> Route:
        """Scores, choice, capacity (none with keep_all), losses."""
        config = self.config
        with torch.autocast(x_NC.device.type, enabled=False):
            x = x_NC.to(torch.promote_types(x_NC.dtype, torch.float32))
            if config.jitter and self.training:
                x = x * torch.empty_like(x).uniform_(1 - config.jitter, 1 + config.jitter)
            logits_NE = x @ self.linear.weight.to(x.dtype).T
        total_N1 = torch.logsumexp(logits_NE, dim=-1, keepdim=True)
        sigmoid = config.routing == "sigmoid"
        # A softmax by way of the z-loss's logsumexp: the kernel for it takes 5 times as long for so few numbers on CPU.
        scores_NE = torch.sigmoid(logits_NE) if sigmoid else (logits_NE - total_N1).exp()
        shares_NE = scores_NE / scores_NE.sum(-1, keepdim=True) if sigmoid else scores_NE
        if config.routing == "expert_choice":
            token_M, expert_M, gate_M, kept_M = *self._experts_choose(scores_NE), None
            balance_loss = logits_NE.new_zeros(())
        else:
            token_M, expert_M, gate_M, kept_M = self._tokens_choose(scores_NE, keep_all)
            balance_loss = self._balance_loss(shares_NE, expert_M)
        z_loss = total_N1.square().mean()
        shares = shares_NE.detach()
        entropy = -(shares * shares.clamp(min=1e-30).log()).sum(-1).mean()
        return Route(token_M, expert_M, gate_M * config.scale, kept_M, balance_loss, z_loss, entropy)

    def _tokens_choose(self, scores_NE: Tensor, keep_all: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Each token takes its K best experts; the bias moves the choice, not the gate."""
        config, N = self.config, len(scores_NE)
        biased = scores_NE + self.balance_bias_E if config.balance == "bias" else scores_NE
        chosen_NK = biased.topk(config.top_k, dim=-1).indices
        gate_NK = scores_NE.gather(1, chosen_NK)
        if config.renormalize:
            gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True).clamp(min=1e-20)
        token_M = torch.arange(N, device=scores_NE.device).repeat_interleave(config.top_k)
        expert_M, gate_M = chosen_NK.flatten(), gate_NK.flatten()
        if config.capacity_factor is None or keep_all:
            return token_M, expert_M, gate_M, None
        capacity = math.ceil(config.capacity_factor * N * config.top_k / config.experts)
        queue = chosen_NK.T.flatten()  # every token's first choice, then every token's second
        place = torch.nn.functional.one_hot(queue, config.experts).cumsum(0).gather(1, queue[:, None])[:, 0]
        kept_M = (place <= capacity).view(config.top_k, N).T.flatten()
        return token_M, expert_M, gate_M * kept_M, kept_M

    def _experts_choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each expert takes the tokens that want it most (Zhou et al., 2022)."""
        config, N = self.config, len(scores_NE)
        capacity = min(math.ceil((config.capacity_factor or 1.0) * N * config.top_k / config.experts), N)
        gate_EM, token_EM = scores_NE.T.topk(capacity, dim=-1)
        expert_M = torch.arange(config.experts, device=scores_NE.device).repeat_interleave(capacity)
        return token_EM.flatten(), expert_M, gate_EM.flatten()

    def _balance_loss(self, shares_NE: Tensor, expert_M: Tensor) -> Tensor:
        """E sum_e f_e P_e (Fedus et al., 2021, eq. 4), f_e the share of choices, P_e the mean score; 1 when even."""
        if self.config.balance != "loss":
            return shares_NE.new_zeros(())
        choices_E = self.choices(expert_M)
        return self.config.experts * (choices_E / choices_E.sum() * shares_NE.mean(0)).sum()

    def choices(self, expert_M: Tensor) -> Tensor:
        """How many of the batch's choices fell on each expert. Replaced where a batch is spread over devices."""
        return torch.bincount(expert_M, minlength=self.config.experts)

    @torch.no_grad()
    def follow_load(self, load_E: Tensor) -> None:
        """Once per optimizer step: biases rise for experts below the mean load and fall for those above.

        Args:
            load_E: tokens of the step per expert, over all ranks.
        """
        if self.config.balance == "bias":
            self.balance_bias_E += self.config.bias_rate * torch.sign(load_E.mean() - load_E)
