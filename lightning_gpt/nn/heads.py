"""A number instead of a token: the head of reward models and critics."""

import math

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """(..., C) -> (...): one number per state, in float32.

    Args:
        width: C.
        zero: start at zero, as a critic does (its first values then say nothing wrong); else normal with deviation
            1 / sqrt(C + 1), as reward models do (Huang et al., 2024, detail 4.2).
    """

    def __init__(self, width: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))
        if not zero:
            nn.init.normal_(self.weight, std=1 / math.sqrt(width + 1))

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return (states.float() @ self.weight.float().T + self.bias.float())[..., 0]
