"""A mixture of experts in place of the feed-forward. Legend: B batch, T tokens, N = B T, C width, E experts, M pairs
of a token and an expert, S rows that experts work on."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.dispatch import Collect, Spread, dispatch
from lightning_gpt.nn.experts import Experts
from lightning_gpt.nn.feedforward import build_dense
from lightning_gpt.nn.router import Router


class RouterReport(NamedTuple):
    """What the last forward pass of a layer did."""

    loss: Tensor
    """Weighted balance and z-loss, to be added to the mean loss."""
    load_E: Tensor
    """Pairs of each expert, dropped ones included."""
    dropped: Tensor
    """Share of pairs dropped for want of capacity."""
    entropy: Tensor
    """Of the router, in nats."""


CPU_ROW_MULTIPLE = {torch.bfloat16: 32, torch.float16: 32}
"""On CPU products of these types are compiled anew for every number of rows that they meet, which takes ten times as
long as the product; loads are never the same twice, their multiples of this are."""


class MixtureOfExperts(nn.Module):
    """y = sum over a token's experts of gate * expert(x), and the shared experts (Shazeer et al., 2017)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config.moe
        self.router = Router(config.n_embd, config.moe)
        self.experts = Experts(config)
        shared = config.moe.shared * config.expert_size
        self.shared = build_dense(config, shared, config.expert_kind) if shared else None
        self.report: RouterReport | None = None

    def forward(self, x_BTC: Tensor, keep_all: bool = False) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            x_BTC: the normalised stream.
            keep_all: capacity counts for nothing, so that what a token gets does not depend on the tokens beside it.
        """
        config, (B, T, C) = self.config, x_BTC.shape
        x_NC = x_BTC.reshape(B * T, C)
        route = self.router(x_NC, keep_all)
        load_E = torch.bincount(route.expert_M, minlength=config.experts)
        if config.routing == "expert_choice":  # sorted by expert already; a token has any number of them
            y_MC = self.experts(x_NC[route.token_M], load_E)
            y_MC = y_MC * route.gate_M[:, None].to(y_MC.dtype)
            y_NC = torch.zeros(B * T, C, dtype=y_MC.dtype, device=x_NC.device).index_add(0, route.token_M, y_MC)
        else:
            dtype = self.experts.dtype_of(x_NC)
            multiple = CPU_ROW_MULTIPLE.get(dtype, 1) if x_NC.device.type == "cpu" else 1
            if len(route.expert_M) <= multiple:  # so few numbers of rows there can be, as in generation
                multiple = 1
            plan = dispatch(route.expert_M, route.kept_M, config.experts, config.top_k, multiple)
            y_SC = self.experts(Spread.apply(x_NC.to(dtype), plan), plan.rows_E)
            y_NC = Collect.apply(y_SC, route.gate_M.view(B * T, -1), plan)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)
        self.report = RouterReport(
            config.balance_coefficient * route.balance_loss + config.z_coefficient * route.z_loss,
            load_E,
            load_E.new_zeros(()).float() if route.kept_M is None else 1 - route.kept_M.float().mean(),
            route.entropy,
        )
        return y_NC.view(B, T, C)


def mixtures(network: nn.Module) -> list[tuple[int, MixtureOfExperts]]:
    """(layer, mixture) of a GPT, in order."""
    found = ((layer, block.feed_forward) for layer, block in enumerate(network.blocks))
    return [(layer, module) for layer, module in found if isinstance(module, MixtureOfExperts)]
