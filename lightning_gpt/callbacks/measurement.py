"""Runs that are made to be looked at, not kept: they end after a few steps and save nothing."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.callbacks.training_metrics import TrainingMetrics
from lightning_gpt.optim.rate_range import THRESHOLD, has_diverged, sweep_rates


class Finished(SystemExit):
    """All is measured: leaves training before anything is saved, with exit status 0."""

    def __init__(self) -> None:
        super().__init__(0)


class RateSweep(Callback):
    """Learning rates that grow from step to step, all groups in proportion; ends when the loss diverges.

    Needs trainer.log_every_n_steps = 1: metrics.jsonl then holds rate (optim/lr) and loss of every step.

    Args:
        low: rate of the first parameter group in the first step.
        high: the same in the last step.
        steps: optimizer steps.
        threshold: a loss of so many times the lowest has diverged.
    """

    def __init__(self, low: float, high: float, steps: int, threshold: float = THRESHOLD) -> None:
        self.rates, self.threshold = sweep_rates(low, high, steps), threshold
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Sets the rates of this step, whatever the schedule has made of them."""
        rate = self.rates[trainer.global_step]
        for optimizer in trainer.optimizers:
            first = optimizer.param_groups[0]["initial_lr"]
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate / first

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Looks at the step's loss."""
        if trainer.global_step == len(self.losses):
            return  # inside an accumulation
        metrics = next(one for one in trainer.callbacks if isinstance(one, TrainingMetrics))
        self.losses.append(metrics.latest["train/loss"])
        if len(self.losses) == len(self.rates) or has_diverged(self.losses, self.threshold):
            raise Finished


class StepCost(Callback):
    """Times a few optimizer steps and writes their seconds and the peak memory to a file.

    Args:
        path: JSON {"seconds": [...], "peak_bytes": n}; memory of the GPU where there is one, else resident.
        warmup: steps that are not timed: they allocate and compile.
        steps: that are.
    """

    def __init__(self, path: str, warmup: int = 2, steps: int = 3) -> None:
        self.path, self.warmup, self.steps = Path(path), warmup, steps
        self._ends: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the memory of what came before."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Notes the time."""
        if trainer.global_step == len(self._ends):
            return  # inside an accumulation
        cuda = pl_module.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(pl_module.device)
        self._ends.append(time.perf_counter())
        if len(self._ends) < self.warmup + self.steps:
            return
        timed = self._ends[self.warmup - 1 :]
        peak = torch.cuda.max_memory_allocated(pl_module.device) if cuda else peak_resident_bytes()
        result: dict[str, Any] = {"seconds": [b - a for a, b in pairwise(timed)], "peak_bytes": peak}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result))
        temporary.replace(self.path)
        raise Finished


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far."""
    try:
        import resource
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
