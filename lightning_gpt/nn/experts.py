"""The experts of one layer, computed together. Legend: M rows, C width, F hidden width, E experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gpt.nn.config import GATED, GPTConfig
from lightning_gpt.nn.feedforward import ACTIVATIONS


class Experts(nn.Module):
    """E feed-forwards without biases, their matrices stacked: up (E, F or 2 F, C) and down (E, C, F)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        E, C, hidden = config.moe.experts, config.n_embd, config.expert_size
        self.gated = config.expert_kind in GATED
        self.up = nn.Parameter(torch.empty(E, (2 if self.gated else 1) * hidden, C))
        self.down = nn.Parameter(torch.empty(E, C, hidden))
        self.activation = ACTIVATIONS[config.expert_kind]

    def act(self, x: Tensor) -> Tensor:
        """Between the two matrices."""
        if not self.gated:
            return self.activation(x)
        gate, up = x.chunk(2, dim=-1)
        return self.activation(gate) * up

    def dtype_of(self, x: Tensor) -> torch.dtype:
        """In which x is multiplied: grouped products know nothing of autocast."""
        device = x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

    def forward(self, x_MC: Tensor, rows_E: Tensor) -> Tensor:
        """Rows sorted by expert -> (M, C), through one grouped matrix product for all experts.

        Args:
            x_MC: the first rows_E[0] rows belong to expert 0, and so on.
            rows_E: int64, how many rows each expert has; 0 is allowed.
        """
        dtype = self.dtype_of(x_MC)
        if dtype == torch.float64:  # the grouped product has none
            return self.loop(x_MC, rows_E)
        ends = rows_E.cumsum(0).to(torch.int32)
        with torch.autocast(x_MC.device.type, enabled=False):
            hidden = F.grouped_mm(x_MC.to(dtype), self.up.to(dtype).transpose(1, 2), offs=ends)
            return F.grouped_mm(self.act(hidden), self.down.to(dtype).transpose(1, 2), offs=ends)

    def loop(self, x_MC: Tensor, rows_E: Tensor) -> Tensor:
        """The readable twin of forward: one expert after the other."""
        parts = x_MC.split(rows_E.tolist())
        return torch.cat([self.act(x @ up.T) @ down.T for x, up, down in zip(parts, self.up, self.down)])
