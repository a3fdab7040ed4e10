"""What is measured of a network in training for its diagnosis: on logging steps, on a sample, without a copy of it."""

import math
import time

import torch
from torch import Tensor, nn

from lightning_gpt.nn.feedforward import FeedForward, GatedFeedForward

SAMPLE = 4096
"""Numbers of each matrix that are looked at: an error of about 2% in a norm."""
FLAT_BELOW = {"relu": 0.0, "relu2": 0.0, "gelu": -3.0, "gelu_tanh": -3.0, "geglu": -3.0, "swiglu": -6.0}
"""Below these inputs an activation is off: its derivative is 0, or within 0.013 of it (GELU at -3, SiLU at -6)."""


def matrices(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable matrices and stacks of matrices in order. Not embeddings: of them a batch moves only some rows."""
    tables = {id(one.weight) for one in network.modules() if isinstance(one, nn.Embedding)}
    return [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and parameter.requires_grad and id(parameter) not in tables
    ]


def sample(tensor: Tensor) -> Tensor:
    """About SAMPLE numbers spread over a tensor, this rank's part of it when it is sharded; a view where possible."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    flat = local.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]


class UpdateProbe:
    """How far an optimizer step moves the matrices, and how the gradient's size changes with depth.

    Args:
        network: with a module list `blocks`, or else any.
    """

    def __init__(self, network: nn.Module) -> None:
        found = matrices(network)
        self.parameters = [parameter for _, parameter in found]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        blocks = [name.split(".")[1] if name.startswith("blocks.") else None for name, _ in found]
        numbers = [int(block) for block in blocks if block is not None and block.isdigit()]
        ends = (str(min(numbers)), str(max(numbers))) if len(set(numbers)) > 1 else (None, None)
        self.first = [place for place, block in enumerate(blocks) if block is not None and block == ends[0]]
        self.last = [place for place, block in enumerate(blocks) if block is not None and block == ends[1]]
        self._views: list[Tensor] = []
        self._before: list[Tensor] = []
        self._depth: Tensor | None = None

    def before_step(self) -> None:
        """Between the backward pass and the update."""
        self._views = [sample(parameter) for parameter in self.parameters]
        self._before = [view.clone() for view in self._views]
        ends = [self.parameters[place].grad for place in self.first + self.last]
        if ends and all(gradient is not None for gradient in ends):
            norms = torch.stack(torch._foreach_norm([sample(gradient) for gradient in ends])).float()
            first, last = norms.split((len(self.first), len(self.last)))
            self._depth = first.norm() / last.norm()

    def after_step(self) -> dict[str, float]:
        """update_ratio: norm of the update over the norm of the weights; gradient_depth: the first block's gradient
        over the last block's."""
        if not self._before:
            return {}
        weights = torch.stack(torch._foreach_norm(self._before)).float()
        updates = torch.stack(torch._foreach_norm(torch._foreach_sub(self._views, self._before))).float()
        # A sample's norm stands for its matrix: each counts by its size.
        scale = torch.tensor([(size / len(view)) ** 0.5 for size, view in zip(self.sizes, self._views)])
        scale = scale.to(weights.device)
        found = {"update_ratio": float((updates * scale).norm() / (weights * scale).norm())}
        if self._depth is not None:
            found["gradient_depth"] = float(self._depth)
        self._views, self._before, self._depth = [], [], None
        return {name: value for name, value in found.items() if math.isfinite(value)}


class UnitProbe:
    """Which hidden units of the feed-forwards are off for every token of a batch.

    Args:
        network: any with our feed-forwards; experts are not among them (their load is logged elsewhere).
        kind: of the feed-forward, as in the configuration.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        self.threshold = FLAT_BELOW[kind]
        self.gated = [(name, one) for name, one in network.named_modules() if isinstance(one, GatedFeedForward)]
        self.plain = [(name, one) for name, one in network.named_modules() if isinstance(one, FeedForward)]
        self.names = [name for name, _ in self.gated + self.plain]
        self._largest: dict[str, Tensor] = {}
        self._handles: list = []

    def begin(self) -> None:
        """From here on every forward pass is looked at."""
        if self._handles:
            return
        for name, module in self.gated:
            self._handles.append(module.gate_up.register_forward_hook(self._hook(name, gated=True)))
        for name, module in self.plain:
            self._handles.append(module.up.register_forward_hook(self._hook(name, gated=False)))

    def _hook(self, name: str, gated: bool):
        @torch.no_grad()
        def look(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            gate = output.detach()
            gate = gate[..., : gate.shape[-1] // 2] if gated else gate
            largest = gate.flatten(0, -2).amax(0)
            # Always the same operations: a selectively checkpointed block runs this again and counts them.
            self._largest[name] = torch.maximum(self._largest.get(name, largest), largest)

        return look

    def end(self) -> dict[str, float]:
        """dead_units: share of all hidden units; dead_units_worst: of the worst layer; dead_units_layer: its number
        among the feed-forwards."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self._largest:
            return {}
        dead = {name: (largest <= self.threshold).float().mean() for name, largest in self._largest.items()}
        shares = torch.stack(list(dead.values())).tolist()
        worst = max(range(len(shares)), key=shares.__getitem__)
        layer = list(dead)[worst].split(".")[1:2]
        self._largest = {}
        found = {"dead_units": sum(shares) / len(shares), "dead_units_worst": shares[worst]}
        return found | ({"dead_units_layer": int(layer[0])} if layer and layer[0].isdigit() else {})


class WaitClock:
    """The share of wall time that passes between a batch's end and the arrival of the next.

    What comes between that is not waiting (validation, saving) is told by `interrupted`. On a GPU a wait counts only
    if the device had nothing left to do when the batch came: otherwise it cost nothing.
    """

    def __init__(self) -> None:
        self._clock: float | None = None
        self.waited = self.worked = 0.0

    def batch_ended(self) -> None:
        """Waiting begins."""
        now = time.perf_counter()
        if self._clock is not None:
            self.worked += now - self._clock
        self._clock = now

    def batch_came(self, device: torch.device) -> None:
        """Waiting ends."""
        now = time.perf_counter()
        if self._clock is not None:
            idle = device.type != "cuda" or torch.cuda.current_stream(device).query()
            if idle:
                self.waited += now - self._clock
            else:
                self.worked += now - self._clock
        self._clock = now

    def interrupted(self) -> None:
        """What has passed since the last call is neither waiting nor work."""
        self._clock = None

    def share(self) -> float | None:
        """Since the last call; None: nothing was measured."""
        total = self.waited + self.worked
        share = self.waited / total if total else None
        self.waited = self.worked = 0.0
        return share
