"""Calibration text on its way through a network, one block at a time: of all states only those before one block are
held. Legend: B sequences in a batch, T tokens, C width, K inputs of a layer, M rows."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from lightning_gpt.nn import GPT
from lightning_gpt.nn.attention import Pass

BATCH_TOKENS = 2048
"""Tokens that go through a block at a time."""
PROBE_ROWS = 512
"""Inputs of each layer that are kept to compare its outputs before and after."""


class InputStatistics:
    """What a layer's inputs are like.

    Args:
        size: K.
        hessian: also sum x x^T, K x K numbers.
        probe_every: one of so many rows is kept.
    """

    def __init__(self, size: int, hessian: bool, probe_every: int) -> None:
        self.rows, self.probe_every = 0, probe_every
        self.sum_K, self.largest_K = torch.zeros(size), torch.zeros(size)
        """Of |x|; the sum and the largest."""
        self.hessian_KK = torch.zeros(size, size) if hessian else None
        """Sum of x x^T."""
        self._probes: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Counts inputs (..., K)."""
        x_MK = x.detach().reshape(-1, x.shape[-1]).float()
        self._probes.append(x_MK[:: self.probe_every].clone())
        self.rows += len(x_MK)
        if self.hessian_KK is not None:
            self.hessian_KK.addmm_(x_MK.T, x_MK)
        magnitude = x_MK.abs()
        self.sum_K += magnitude.sum(0)
        torch.maximum(self.largest_K, magnitude.amax(0), out=self.largest_K)

    @property
    def mean_K(self) -> Tensor:
        """Of |x|."""
        return self.sum_K / max(self.rows, 1)

    @property
    def probes_MK(self) -> Tensor:
        """Some of the inputs."""
        return torch.cat(self._probes)

    def divide(self, factors_K: Tensor) -> None:
        """What they are when every input is divided."""
        self.sum_K /= factors_K
        self.largest_K /= factors_K
        if self.hessian_KK is not None:
            self.hessian_KK /= factors_K[:, None] * factors_K
        self._probes = [probe / factors_K for probe in self._probes]


class BlockWalk:
    """The states of the calibration before one block after the other.

    Args:
        net: in evaluation mode, float32.
        ids_BT: int64, all sequences.

    Raises:
        ValueError: states that are not finite, naming the block.
    """

    @torch.no_grad()
    def __init__(self, net: GPT, ids_BT: Tensor) -> None:
        self.net, self.blocks = net, list(net.blocks)
        self.states: list[Tensor] = []
        """Before the next block, (B, T, C) each."""
        self._shared: Pass | None = None
        self._first_values: list[Tensor | None] | None = None
        batch = max(1, BATCH_TOKENS // ids_BT.shape[1])
        self.tokens = ids_BT.numel()
        with _stopped_before_blocks(net, self):
            for part in ids_BT.split(batch):
                net.hidden(part)
        self._embedded = list(self.states) if net.config.input_skip else self.states
        self._check("the embedding")

    @torch.no_grad()
    def statistics(self, layer: int, modules: dict[str, nn.Module], hessian: bool) -> dict[str, InputStatistics]:
        """Runs a block up to the last of some of its layers, and says what their inputs are like."""
        every = max(1, self.tokens // PROBE_ROWS)
        found = {name: InputStatistics(module.in_features, hessian, every) for name, module in modules.items()}
        last = list(modules)[-1] if modules else None

        def note(name: str, x: Tensor) -> None:
            found[name].add(x)
            if name == last:
                raise _AllSeenError

        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
            for name, module in modules.items()
        ]
        try:
            for inputs in self._inputs():
                with suppress(_AllSeenError):
                    self.blocks[layer](*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Replaces the states by those behind a block."""
        values = []
        for index, inputs in enumerate(self._inputs()):
            self.states[index], value = self.blocks[layer](*inputs)
            values.append(value)
        if layer == 0 and self.net.config.value_skip:
            self._first_values = values
        self._check(f"block {layer}")

    @torch.no_grad()
    def head_statistics(self, hessian: bool) -> InputStatistics:
        """What the head's inputs are like, when all blocks are done."""
        every = max(1, self.tokens // PROBE_ROWS)
        found = InputStatistics(self.net.config.n_embd, hessian, every)
        for state in self.states:
            found.add(self.net.final_norm(state))
        return found

    def _inputs(self) -> Iterator[tuple]:
        """Arguments of the next block, a batch at a time."""
        firsts = self._first_values or [None] * len(self.states)
        for state, embedded, first in zip(list(self.states), self._embedded, firsts):
            yield state, self._shared, embedded, first

    def _check(self, where: str) -> None:
        for state in self.states:
            if not torch.isfinite(state).all():
                raise ValueError(
                    f"activations behind {where} are not finite on the calibration text: the network itself is broken "
                    "there, or its type is too narrow"
                )


class _AllSeenError(Exception):
    """What a block computes from here on is not needed."""


class _Recorder(nn.Module):
    """Stands in for all blocks."""

    def __init__(self, walk: BlockWalk) -> None:
        super().__init__()
        self._walk = [walk]

    def forward(self, x: Tensor, shared: Pass, *rest: object) -> tuple[Tensor, None]:
        """Notes a batch's states and what the layers of a pass share, which is the same for every batch."""
        self._walk[0].states.append(x)
        self._walk[0]._shared = shared
        return x, None


@contextmanager
def _stopped_before_blocks(net: GPT, walk: BlockWalk) -> Iterator[None]:
    blocks = net.blocks
    net.blocks = nn.ModuleList([_Recorder(walk)])
    try:
        yield
    finally:
        net.blocks = blocks
