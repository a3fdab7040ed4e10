"""A network with the names and the kinds of parameters that a GPT has, and one batch of random text."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

VOCAB, WIDTH, CONTEXT = 64, 32, 8


class Block(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.experts = nn.Parameter(0.02 * torch.randn(experts, WIDTH, WIDTH)) if experts else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        y = self.down(torch.relu(self.up(h)))
        if self.experts is not None:
            y = y + torch.einsum("btc,edc->btd", h, self.experts)
        return x + y


class TinyGPT(nn.Module):
    def __init__(self, tied: bool = True, experts: int = 0) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        self.position_embedding = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(experts) for _ in range(2))
        self.final_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.token_embedding(input_ids) + self.position_embedding.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


@pytest.fixture
def tiny_gpt() -> Callable[..., TinyGPT]:
    """Makes the same network every time."""

    def make(**options: object) -> TinyGPT:
        torch.manual_seed(0)
        return TinyGPT(**options)

    return make


@pytest.fixture
def train() -> Callable[..., list[float]]:
    """Takes optimizer steps on one fixed batch; returns the loss before each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (4, CONTEXT + 1), generator=generator)

    def run(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: object = None) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = nn.functional.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
        return losses

    return run
