"""How a token's position is told: tables that are added, angles that queries and keys are turned by, biases on scores.

Rotary embedding is in the half-split layout of Hugging Face's LLaMA.
"""

import math

import torch
from torch import Tensor, nn

from lightning_gpt.nn.rope_scaling import RopeScaling, rotary_frequencies


class RotaryTable(nn.Module):
    """cos and sin of every angle position * frequency (Su et al., 2021), computed once in float32.

    Buffers are not saved: they follow from the configuration.

    Args:
        size: D, how many numbers of a head are turned; even.
        block_size: number of positions.
        theta: base of the wavelengths.
        scaling: changes them to read further (nn/rope_scaling.py).
    """

    def __init__(self, size: int, block_size: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        frequency, growth = rotary_frequencies(size, theta, scaling)
        angle = torch.arange(block_size, dtype=torch.float64)[:, None] * frequency
        cos, sin = growth * angle.cos(), growth * angle.sin()
        self.register_buffer("cos_TD", torch.cat((cos, cos), dim=-1).float(), persistent=False)
        self.register_buffer("sin_TD", torch.cat((-sin, sin), dim=-1).float(), persistent=False)

    def forward(self, positions: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for the given positions, the sines of the first half negative, as `rotate` takes them.

        Args:
            positions: (B, T) int64, or a slice of consecutive positions shared by the batch.
            dtype: of the queries that will be turned.

        Returns:
            two tensors (B, 1, T, D), or (1, 1, T, D) for a slice.
        """
        cos, sin = self.cos_TD[positions].to(dtype), self.sin_TD[positions].to(dtype)
        return (cos[None, None], sin[None, None]) if isinstance(positions, slice) else (cos[:, None], sin[:, None])


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + R/2}) of the first R numbers of a head by its angle, R being the table's width; dot
    products then depend on distance alone. Numbers behind R stay (partial rotary: Black et al., 2022, GPT-NeoX).

    (x_i cos - x_{i + R/2} sin, x_{i + R/2} cos + x_i sin), the sign being in the table: on CPU a sixth to a third
    quicker, forward and backward, than halves that are negated and put together."""
    size = cos.shape[-1]
    turned = x_BHTD if size == x_BHTD.shape[-1] else x_BHTD[..., :size]
    turned = turned * cos + turned.roll(size // 2, -1) * sin
    return turned if size == x_BHTD.shape[-1] else torch.cat((turned, x_BHTD[..., size:]), dim=-1)


class SinusoidalTable(nn.Module):
    """Fixed sines and cosines that are added to token embeddings (Vaswani et al., 2017, section 3.5).

    Even columns hold sin(position / 10000^(i / C)), odd ones the cosine of the same angle. Buffers are not saved.
    """

    def __init__(self, width: int, block_size: int) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(block_size, dtype=torch.float64)[:, None] * frequency
        table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]
        self.register_buffer("weight", table.float(), persistent=False)


def alibi_slopes(heads: int) -> Tensor:
    """What each head takes off its scores per token of distance (Press et al., 2022): (H,) float32.

    The geometric sequence 2^(-8/n), 2^(-16/n), ... for a power of two; other counts add every second one of the
    sequence of the next power, as the paper's reference implementation does.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes)
