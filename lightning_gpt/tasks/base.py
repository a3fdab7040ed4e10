"""What every task shares: optimizer and schedule from YAML, exact token means, clipping, guards against NaN."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_gpt.optim import OptimizerSpec, ScheduleSpec

CHECKPOINT_KEY = "lightning_gpt"
"""Where a checkpoint keeps what is needed to use it without its YAML: model, tokenizer, counters."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the weights were not touched by it."""


class Task(LightningModule):
    """Base of the LightningModules: subclasses build `self.net` and return a loss sum and its token count.

    The loss that is descended is the mean over all tokens of an optimizer step: over its micro-batches, its ranks
    and whatever is masked among them, however unevenly. Each micro-batch divides its sum by its nominal size, and
    once per step the gradients are rescaled by nominal / counted.

    Args:
        optimizer: what updates the weights (lightning_gpt.optim).
        schedule: factor on the learning rates by optimizer step.
    """

    def __init__(self, optimizer: OptimizerSpec, schedule: ScheduleSpec) -> None:
        super().__init__()
        self.optimizer_spec = optimizer
        self.schedule_spec = schedule
        self.tokens_seen = 0
        self.window_loss: Tensor | float = 0.0
        self.window_tokens: Tensor | int = 0
        self.gradient_norm: Tensor | None = None
        self._step_nominal = 0
        self._step_tokens: Tensor | int = 0

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimizer over every parameter, and its schedule over trainer.max_steps.

        Raises:
            ValueError: no max_steps: a schedule needs its end.
        """
        total = self.trainer.max_steps
        if total < 1:
            raise ValueError(f"trainer.max_steps={total}: the schedule needs its length, set trainer.max_steps")
        optimizer = self.optimizer_spec.build(self)
        scheduler = self.schedule_spec.build(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def mean_loss(self, loss_sum: Tensor, count: Tensor, nominal: int) -> Tensor:
        """Books one micro-batch and returns the loss to descend.

        Args:
            loss_sum: scalar, sum over counted tokens in nats.
            count: scalar, how many tokens it runs over.
            nominal: tokens of the micro-batch, masked or not: the divisor that is known beforehand.

        Raises:
            NonFiniteError: on CPU, where looking costs nothing; on a GPU the metrics and checkpoints look.
        """
        loss = loss_sum.detach()
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} in optimizer step {self.trainer.global_step + 1}")
        self.window_loss = self.window_loss + loss
        self.window_tokens = self.window_tokens + count
        self._step_tokens = self._step_tokens + count
        self._step_nominal += nominal
        return loss_sum / nominal

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Once per optimizer step: makes the mean exact, clips by norm, keeps the norm for the log.

        Called by Lightning also without a clip value. torch's own function is used because Lightning 2.6 refuses to
        clip for fused optimizers under bf16-mixed.
        """
        parameters = [p for p in self.parameters() if p.grad is not None]
        if getattr(self.trainer.datamodule, "masks_targets", True):
            self._rescale(parameters)
        self._step_tokens, self._step_nominal = 0, 0
        limit = gradient_clip_val or float("inf")
        if gradient_clip_algorithm == "value":
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            torch.nn.utils.clip_grad_value_(parameters, limit)
        elif gradient_clip_val:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        else:
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if self.gradient_norm.device.type == "cpu" and not torch.isfinite(self.gradient_norm):
            raise NonFiniteError(
                f"the gradient norm is {self.gradient_norm.item()} in optimizer step {self.trainer.global_step + 1}"
            )

    def _rescale(self, parameters: list[torch.nn.Parameter]) -> None:
        """Gradients of nominal means -> gradients of the mean over counted tokens of all ranks."""
        accumulation, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
        counted = torch.as_tensor(self._step_tokens, dtype=torch.float32, device=self.device)
        nominal = torch.as_tensor(self._step_nominal, dtype=torch.float32, device=self.device)
        if world > 1:
            both = torch.stack((counted, nominal))
            torch.distributed.all_reduce(both)
            counted, nominal = both
        # Each micro-batch was divided by its own nominal size, then by the accumulation, then averaged over ranks:
        # with equal nominal sizes the sum of losses times accumulation * world / nominal.
        micro_nominal = nominal / (accumulation * world)
        factor = micro_nominal * accumulation * world / counted.clamp(min=1)
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return
        torch._foreach_mul_([p.grad for p in parameters], factor)

    def is_finite(self) -> bool:
        """Whether the latest loss and gradient were finite: asked before a checkpoint is written."""
        latest = [self.window_loss, self.gradient_norm]
        return all(bool(torch.isfinite(value).all()) for value in latest if isinstance(value, Tensor))

    def check_finite(self, loss: float) -> None:
        """Stops a run whose logged loss is not finite.

        Raises:
            NonFiniteError: naming the step.
        """
        if not math.isfinite(loss) or not self.is_finite():
            raise NonFiniteError(
                f"the loss is {loss} and the gradient norm {float(self.gradient_norm)} by optimizer step "
                f"{self.trainer.global_step}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters; subclasses add what makes the checkpoint usable alone."""
        checkpoint[CHECKPOINT_KEY] = {
            "format": 1,
            "tokens_seen": self.tokens_seen,
            "window_loss": float(self.window_loss),
            "window_tokens": int(self.window_tokens),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters.

        Raises:
            ValueError: the checkpoint is another program's.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise ValueError("this checkpoint was not written by lightning_gpt: it lacks the key 'lightning_gpt'")
        saved = checkpoint[CHECKPOINT_KEY]
        self.tokens_seen = saved["tokens_seen"]
        self.window_loss, self.window_tokens = saved["window_loss"], saved["window_tokens"]
