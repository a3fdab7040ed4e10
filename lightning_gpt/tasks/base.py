"""What every task shares: optimizer and schedule from YAML, exact token means, clipping, guards against NaN."""

import math
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lightning_gpt.optim import InBackward, OptimizerSpec, ScheduleSpec
from lightning_gpt.parallel.data_ranks import DataRanks, data_ranks
from lightning_gpt.parallel.gradients import clip_by_norm, clip_by_value, local_gradients
from lightning_gpt.tasks.steps_in_backward import stepping_in_backward

CHECKPOINT_KEY = "lightning_gpt"
"""Where a checkpoint keeps what is needed to use it without its YAML: model, tokenizer, counters."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the weights were not touched by it, unless the optimizer steps
    in the backward pass."""


class Task(LightningModule):
    """Base of the LightningModules: subclasses build `self.net` and return a loss sum and its token count.

    The loss that is descended is the mean over all tokens of an optimizer step: over its micro-batches, its ranks
    and whatever is masked among them, however unevenly. Each micro-batch divides its sum by the same nominal size,
    and once per step the gradients are rescaled by nominal / counted.

    Args:
        optimizer: what updates the weights (lightning_gpt.optim).
        schedule: factor on the learning rates by optimizer step.
    """

    counts = "tokens"
    """What tokens_seen counts, in the names of metrics: progress/<counts>, speed/<counts>_per_second."""
    one_backward = True
    """Whether an optimizer step without accumulation is one backward pass, which Lightning calls."""
    models_language = True
    """Whether the loss is a cross-entropy of tokens, which Diagnosis can judge."""

    def __init__(self, optimizer: OptimizerSpec, schedule: ScheduleSpec) -> None:
        super().__init__()
        self.optimizer_spec = optimizer
        self.schedule_spec = schedule
        self._tokens_seen: Tensor | int = 0
        self.window_loss: Tensor | float = 0.0
        self.window_tokens: Tensor | int = 0
        self.gradient_norm: Tensor | None = None
        self.learning_rate = 0.0
        self._step_tokens: Tensor | int = 0
        self._own_losses: deque[tuple[int, Tensor]] = deque(maxlen=1024)  # since the last healthy log, by step
        self._step_seen: int | None = None  # None: this task's ranks have equal numbers
        self._divisor: Tensor | int = 1
        self._window_sums: dict[str, Tensor] = {}
        self._fresh_groups: list[dict[str, Any]] = []

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimizer over every parameter, and its schedule over trainer.max_steps.

        Raises:
            ValueError: no max_steps: a schedule needs its end.
        """
        total = self.trainer.max_steps
        if total < 1:
            raise ValueError(f"trainer.max_steps={total}: the schedule needs its length, set trainer.max_steps")
        optimizer = self.build_optimizer()
        if self.optimizer_spec.in_backward:
            compiled = getattr(self, "compile_loss", False)
            optimizer = stepping_in_backward(optimizer, self.trainer, self.one_backward, compiled)
        scheduler = self.schedule_spec.build(optimizer, total)
        self._fresh_groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def build_optimizer(self) -> Optimizer:
        """The optimizer over every parameter that learns."""
        return self.optimizer_spec.build(self)

    def on_train_start(self) -> None:
        """Lets this run's settings win over a checkpoint's: restoring an optimizer also restores its learning rate,
        weight decay and all else that its groups hold."""
        for optimizer in self.trainer.optimizers:
            for group, fresh in zip(optimizer.param_groups, self._fresh_groups, strict=True):
                group.update(fresh)
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
            factor = self.schedule_spec.factor(scheduler.last_epoch, self.trainer.max_steps)
            for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs):
                group["lr"] = base * factor
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, of all ranks."""
        return int(self._tokens_seen)

    @tokens_seen.setter
    def tokens_seen(self, tokens: int) -> None:
        self._tokens_seen = tokens

    def see(self, tokens: int) -> None:
        """Counts tokens of this rank's micro-batch as seen, where ranks have unequal numbers; in every micro-batch."""
        self._step_seen = (self._step_seen or 0) + tokens

    def _end_counts(self) -> None:
        """At the end of an optimizer step: adds what every rank has seen, and begins anew."""
        seen, self._step_seen, self._step_tokens = self._step_seen, None, 0
        if seen is not None and self.ranks.size > 1:
            # Not read here: on a GPU that would wait for the step.
            everyones = self.ranks.sum(torch.tensor(seen, dtype=torch.float64, device=self.device))
            self._tokens_seen = self._tokens_seen + everyones
        elif seen is not None:
            self._tokens_seen += seen

    @property
    def strategy(self) -> Strategy | None:
        """Of the trainer, if there is one yet."""
        return self.trainer.strategy if self._trainer is not None else None

    @property
    def ranks(self) -> DataRanks:
        """This process among those that read different batches: tensor-parallel ones count once."""
        return data_ranks(self.trainer)

    @property
    def nominal_tokens(self) -> int:
        """Targets of a full micro-batch of one rank: a divisor that every micro-batch on every rank knows."""
        data = self.trainer.datamodule
        return getattr(data, "batch_size", 1) * getattr(data, "block_size", 1)

    def mean_loss(self, loss_sum: Tensor, count: Tensor) -> Tensor:
        """Books one micro-batch and returns the loss to descend.

        Args:
            loss_sum: scalar, sum over counted tokens in nats.
            count: scalar, how many tokens it runs over.

        Raises:
            NonFiniteError: in a single process on CPU, where looking costs nothing; on a GPU the metrics and
                checkpoints look. Of several ranks none may leave alone: the others would wait in the all-reduce of
                the gradients. There a sick loss makes all of its gradients NaN, so that every rank sees it after the
                all-reduce, before the weights are touched.
        """
        loss = loss_sum.detach()
        step = self.trainer.global_step + 1
        self._own_losses.append((step, loss))
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            if self.trainer.world_size == 1:
                raise NonFiniteError(f"the loss is {loss.item()} in optimizer step {step}")
            loss_sum = loss_sum * math.nan
        self.window_loss = self.window_loss + loss
        self.window_tokens = self.window_tokens + count
        self._step_tokens = self._step_tokens + count
        self._divisor = self.nominal_tokens
        if self.optimizer_spec.in_backward:  # no gradient waits to be rescaled: the mean is exact at once
            counted = self.ranks.sum(torch.as_tensor(count, dtype=torch.float32, device=self.device).clone())
            self._divisor = counted.clamp(min=1) / self.ranks.size
        return loss_sum / self._divisor

    def book(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds to a metric that is logged, beside the loss, as its mean since the last log over all ranks.

        Args:
            name: under which it is logged; every rank must book the same names.
            total: sum over what is counted.
            count: how much that is.
        """
        new = torch.stack([torch.as_tensor(v, dtype=torch.float64).detach().to(self.device) for v in (total, count)])
        before = self._window_sums.get(name)
        self._window_sums[name] = new if before is None else before + new

    def window_metrics(self) -> dict[str, float]:
        """Means of what has been booked since the last call."""
        sums, self._window_sums = self._window_sums, {}
        if not sums:
            return {}
        names = sorted(sums)
        stacked = self.ranks.sum(torch.stack([sums[name] for name in names]))
        return {name: (total / max(count, 1e-12)) for name, (total, count) in zip(names, stacked.tolist())}

    def log_evaluation(self, metrics: dict[str, float], prefix: str) -> None:
        """Logs metrics of a validation or test with the right step."""
        named = {f"{prefix}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, logger=False)
        # Lightning would write the number of the step before: it counts a step only after its validation.
        for logger in self.trainer.loggers:
            logger.log_metrics(named, step=self.trainer.global_step)

    def announce(self, text: str) -> None:
        """Says a line on the first rank, beside the progress: Lightning's own messages are filtered by the commands."""
        say = getattr(self.trainer.progress_bar_callback, "say", rank_zero_info)
        say(text)

    @property
    def about_to_log(self) -> bool:
        """Whether the optimizer step under way will be logged: for metrics that cost something."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Once per optimizer step: makes the mean exact, clips by norm, keeps norm and rate for the log.

        Called by Lightning also without a clip value. It is not Lightning's own clipping because that refuses fused
        optimizers under bf16-mixed.
        """
        self.learning_rate = optimizer.param_groups[0]["lr"]  # of this step: the schedule moves on before the log
        if isinstance(optimizer, InBackward):
            self._end_counts()
            self.gradient_norm = optimizer.take_norm()
            self._check_norm()
            return
        # From the optimizer's lists: to walk the modules takes 0.2 ms of every step.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if getattr(self.trainer.datamodule, "masks_targets", True):
            self._rescale(parameters)
        self._end_counts()
        by_value = gradient_clip_algorithm == "value"
        self.gradient_norm = clip_by_norm(parameters, None if by_value else gradient_clip_val)
        if by_value and gradient_clip_val:
            clip_by_value(parameters, gradient_clip_val)
        self._check_norm()

    def _check_norm(self) -> None:
        """On CPU, where looking costs nothing."""
        if self.gradient_norm.device.type == "cpu" and not math.isfinite(self.gradient_norm.item()):
            norm, step = self.gradient_norm.item(), self.trainer.global_step + 1
            raise NonFiniteError(self._first_sick() or f"the gradient norm is {norm} in optimizer step {step}")

    def _rescale(self, parameters: list[torch.nn.Parameter]) -> None:
        """Gradients of nominal means -> gradients of the mean over counted tokens of all ranks."""
        ranks = self.ranks
        counted = ranks.sum(torch.as_tensor(self._step_tokens, dtype=torch.float32, device=self.device).clone())
        # Each sum was divided by the nominal size and the accumulation, then averaged over the ranks.
        factor = self.nominal_tokens * self.trainer.accumulate_grad_batches * ranks.size / counted.clamp(min=1)
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return
        torch._foreach_mul_(local_gradients(parameters), factor)

    def _first_sick(self) -> str | None:
        """Which rank's loss was the first that is not finite, in which step. Called by all ranks, when one is sick."""
        finite = torch.stack([loss for _, loss in self._own_losses]).isfinite().tolist() if self._own_losses else []
        sick = [(step, float(loss)) for (step, loss), fine in zip(self._own_losses, finite) if not fine]
        if self.trainer.world_size == 1:
            return f"the loss is {sick[0][1]} in optimizer step {sick[0][0]}" if sick else None
        found: list[tuple[int, float] | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, sick[0] if sick else None)
        first = min((one[0] for one in found if one), default=None)
        if first is None:
            return None
        ranks = [rank for rank, one in enumerate(found) if one and one[0] == first]
        where = "all ranks" if len(ranks) == len(found) > 1 else "rank " + ", ".join(map(str, ranks))
        return f"the loss is {found[ranks[0]][1]} on {where} in optimizer step {first}"

    def is_finite(self) -> bool:
        """Whether the latest loss and gradient of all ranks were finite: asked by all of them before a checkpoint is
        written.

        With float16 the loss scaler skips steps whose gradient overflowed: there an infinite one is no illness.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        latest = [self.window_loss] if scaled else [self.window_loss, self.gradient_norm]
        finite = all(bool(torch.isfinite(value).all()) for value in latest if isinstance(value, Tensor))
        if self.trainer.world_size == 1:
            return finite
        agreed = torch.tensor(int(finite), device=self.device)  # a rank that saved alone would wait for the others
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
        return bool(agreed)

    def check_finite(self, loss: float) -> None:
        """Stops a run whose logged loss is not finite.

        Raises:
            NonFiniteError: naming the step.
        """
        if not math.isfinite(loss) or not self.is_finite():
            raise NonFiniteError(
                self._first_sick()
                or f"the loss is {loss} and the gradient norm {float(self.gradient_norm)} by optimizer step "
                f"{self.trainer.global_step}"
            )
        self._own_losses.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters; subclasses add what makes the checkpoint usable alone. Every rank calls."""
        window = [torch.as_tensor(v, dtype=torch.float64) for v in (self.window_loss, self.window_tokens)]
        window_2 = self.ranks.sum(torch.stack([value.to(self.device) for value in window]))
        checkpoint[CHECKPOINT_KEY] = {
            "format": 1,
            "tokens_seen": self.tokens_seen,
            "window_loss": window_2[0].item(),
            "window_tokens": int(window_2[1].item()),
            "optimizer": type(self.optimizer_spec).__name__,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters.

        Raises:
            ValueError: the checkpoint is another program's, or training goes on with another kind of optimizer.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise ValueError("this checkpoint was not written by lightning_gpt: it lacks the key 'lightning_gpt'")
        saved = checkpoint[CHECKPOINT_KEY]
        theirs, ours = saved.get("optimizer"), type(self.optimizer_spec).__name__
        if self.trainer.state.fn == "fit" and theirs not in (None, ours):
            raise ValueError(
                f"the checkpoint holds the state of {theirs}, model.optimizer is {ours}: choose {theirs}, or start a "
                "new run from the checkpoint's weights with --model.init_from"
            )
        self.tokens_seen = saved["tokens_seen"]
        if self.ranks.rank == 0:  # they are sums over all ranks
            self.window_loss, self.window_tokens = saved["window_loss"], saved["window_tokens"]
