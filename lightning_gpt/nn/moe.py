"""A mixture of experts in place of the feed-forward. Legend: B batch, T tokens, N = B T, C width, E experts, M pairs
of a token and an expert."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gpt.nn.config import GPTConfig
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


class _Sort(torch.autograd.Function):
    """x_NC[order // K] for K consecutive pairs a token; backward is a sum of K rows in place of a scatter, which on
    CPU is 3 times as fast."""

    @staticmethod
    def forward(ctx, x_NC: Tensor, order: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.shape = (len(x_NC), top_k, -1)
        return x_NC.index_select(0, order.div(top_k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx, grad_MC: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return grad_MC.index_select(0, back).view(ctx.shape).sum(1), None, None


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

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x_BTC.shape
        x_NC = x_BTC.reshape(B * T, C)
        route = self.router(x_NC)
        load_E = torch.bincount(route.expert_M, minlength=self.config.experts)
        order = route.expert_M.argsort(stable=True)
        if self.config.routing == "expert_choice":  # a token has any number of experts
            sorted_MC = x_NC[route.token_M[order]]
        else:
            sorted_MC = _Sort.apply(x_NC, order, self.config.top_k)
        out_MC = self.experts(sorted_MC, load_E)
        out_MC = out_MC * route.gate_M[order, None].to(out_MC.dtype)
        y_NC = torch.zeros(B * T, C, dtype=out_MC.dtype, device=x_NC.device).index_add(0, route.token_M[order], out_MC)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)
        self.report = RouterReport(
            self.config.balance_coefficient * route.balance_loss + self.config.z_coefficient * route.z_loss,
            load_E,
            (route.gate_M == 0).float().mean(),
            route.entropy,
        )
        return y_NC.view(B, T, C)


def mixtures(network: nn.Module) -> list[tuple[int, MixtureOfExperts]]:
    """(layer, mixture) of a GPT, in order."""
    found = ((layer, block.feed_forward) for layer, block in enumerate(network.blocks))
    return [(layer, module) for layer, module in found if isinstance(module, MixtureOfExperts)]
