"""Norms of the gradients of micro-batches and of their mean: what the gradient noise scale is made of."""

import json
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.callbacks.measurement import Finished


class GradientNorms(Callback):
    """Writes the squared norms of an accumulated gradient's parts and of the whole, step by step, then ends training.

    Accumulation is what gives two batch sizes of one step for nothing: each micro-batch is the small batch, all of them
    the large one. Costs a copy of the gradients. One device: on several the parts are not seen in one place.

    Args:
        path: JSON {"small": [mean over the micro-batches, of each step], "large": [of each step]}.
        steps: optimizer steps.
    """

    def __init__(self, path: str, steps: int) -> None:
        self.path, self.steps = Path(path), steps
        self._before: list[torch.Tensor] | None = None
        self._parts: list[torch.Tensor] = []
        self.small: list[float] = []
        self.large: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what it cannot measure.

        Raises:
            ValueError: no accumulation, or several devices.
        """
        if trainer.accumulate_grad_batches < 2:
            raise ValueError("trainer.accumulate_grad_batches must be at least 2: a noise scale needs two batch sizes")
        if trainer.world_size > 1:
            raise ValueError(f"trainer.devices gives {trainer.world_size} processes: measure the noise scale on one")

    @torch.no_grad()
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the difference that this micro-batch has made: Lightning divides its loss by their number."""
        times = trainer.accumulate_grad_batches
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        before = self._before or [torch.zeros_like(one) for one in gradients]
        parts = torch._foreach_sub(gradients, before)
        self._parts.append(times**2 * _square_norm(parts))
        if len(self._parts) < times:
            self._before = [one.clone() for one in gradients]
            return
        self.small.append(float(sum(self._parts) / times))
        self.large.append(float(_square_norm(gradients)))
        self._before, self._parts = None, []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what of an accumulation the end of the data has cut off."""
        self._before, self._parts = None, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Ends when all is there."""
        if len(self.large) < self.steps:
            return
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"small": self.small, "large": self.large}))
        temporary.replace(self.path)
        raise Finished


def _square_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(torch._foreach_norm(tensors)).float().square().sum()
