"""The optimizer's step inside the backward pass: a parameter is updated the moment its gradient is complete, and the
gradient is freed (Lv et al., 2023, LOMO, arXiv:2306.09782, section 3.1).

Gradients of all parameters are then never in memory together, only of those that are being updated. What needs them
together - a clipped norm, an accumulation over micro-batches, a loss scaler that may skip the step - cannot be had.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class InBackward(torch.optim.Optimizer):
    """An ordinary optimizer whose parameters step by themselves in the backward pass.

    Groups and states are the ordinary optimizer's own, so schedules move its rates, and a checkpoint of one is a
    checkpoint of the other. Each update is the ordinary step with that parameter alone, the same bit for bit where the
    optimizer treats every parameter by itself.

    Args:
        inner: built over the parameters; it must not step by itself.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.squared_norms: list[Tensor] = []
        """Of the gradients since `take_norm`, before the update."""
        super().__init__(inner.param_groups, inner.defaults)
        self._share()
        self._sharded = any(isinstance(parameter, DTensor) for parameter in self._place)
        for parameter in self._place:
            parameter.register_post_accumulate_grad_hook(self._update)

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self._place = {
            parameter: place for place, group in enumerate(self.param_groups) for parameter in group["params"]
        }

    @torch.no_grad()
    def _update(self, parameter: nn.Parameter) -> None:
        """Called by autograd, and by FSDP2 after its reduce-scatter."""
        self.squared_norms.append(_square(parameter.grad))
        groups = self.inner.param_groups
        self.inner.param_groups = [{**groups[self._place[parameter]], "params": [parameter]}]
        try:
            self.inner.step()
        finally:
            self.inner.param_groups = groups
        parameter.grad = None

    def take_norm(self) -> Tensor:
        """Norm of all gradients since the last call, which is forgotten then; of sharded ones over all ranks."""
        squares, self.squared_norms = self.squared_norms, []
        if not squares:
            return torch.zeros(())
        total = torch.stack(squares).sum()
        if self._sharded:
            torch.distributed.all_reduce(total)
        return total.sqrt()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure, whose backward pass updates; then updates what has a gradient still, such as one that was
        set by hand."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if any(parameter.grad is not None for group in self.param_groups for parameter in group["params"]):
            self.inner.step()
        return result

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the inner optimizer's groups, when it is wrapped.

        Raises:
            ValueError: later.
        """
        if any(param_group is one for one in self.inner.param_groups):
            self.param_groups.append(param_group)
            return
        raise ValueError(
            "a group is added to an optimizer that steps in the backward pass: add it before it is wrapped"
        )

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of this or of an ordinary optimizer."""
        self.inner.load_state_dict(state_dict)
        self._share()


def _square(gradient: Tensor) -> Tensor:
    """Squared norm; of a DTensor this rank's part of it, so that all ranks' sum to the whole."""
    if not isinstance(gradient, DTensor):
        return torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
    copies = 1
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements):
        copies *= size if placement.is_replicate() else 1
    return torch.linalg.vector_norm(gradient.to_local(), dtype=torch.float32).square() / copies
