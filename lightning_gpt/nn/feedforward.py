"""Feed-forward layers, chosen by name. Shapes: x (B, T, C), hidden width F."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lightning_gpt.nn.config import GATED, GPTConfig


class _ReluSquared(torch.autograd.Function):
    """The derivative is twice what the forward pass has: autograd would compute it again, which takes about 4% of
    a small network's step on CPU."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (Primer, So et al., 2021)."""
    return _ReluSquared.apply(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": relu_squared,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class FeedForward(nn.Module):
    """down(act(up(x))): C -> F -> C (Vaswani et al., 2017)."""

    def __init__(self, config: GPTConfig, hidden: int, kind: str) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, 2020); gate and up are one matrix, so that x is read once."""

    def __init__(self, config: GPTConfig, hidden: int, kind: str) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[kind]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


def build_dense(config: GPTConfig, hidden: int, kind: str) -> nn.Module:
    """A feed-forward of one kind, `hidden` wide."""
    return (GatedFeedForward if kind in GATED else FeedForward)(config, hidden, kind)
