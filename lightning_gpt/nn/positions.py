"""Rotary position embedding (Su et al., 2021), in the half-split layout of Hugging Face's LLaMA."""

import torch
from torch import Tensor, nn


class RotaryTable(nn.Module):
    """cos and sin of every angle position * theta^(-2i/D), computed once in float32.

    Buffers are not saved: they follow from the configuration.
    """

    def __init__(self, head_size: int, block_size: int, theta: float) -> None:
        super().__init__()
        self.head_size, self.block_size, self.theta = head_size, block_size, theta
        cos, sin = self._tables()
        self.register_buffer("cos_TD", cos, persistent=False)
        self.register_buffer("sin_TD", sin, persistent=False)

    def _tables(self) -> tuple[Tensor, Tensor]:
        frequency = self.theta ** (-torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size)
        angle = torch.arange(self.block_size, dtype=torch.float64)[:, None] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().float(), angle.sin().float()

    def forward(self, positions: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for the given positions.

        Args:
            positions: (B, T) int64, or a slice of consecutive positions shared by the batch.
            dtype: of the queries that will be turned.

        Returns:
            two tensors (B, 1, T, D), or (1, 1, T, D) for a slice.
        """
        cos, sin = self.cos_TD[positions].to(dtype), self.sin_TD[positions].to(dtype)
        return (cos[None, None], sin[None, None]) if isinstance(positions, slice) else (cos[:, None], sin[:, None])


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + D/2}) by its angle; dot products then depend on distance alone."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-second, first), dim=-1) * sin
