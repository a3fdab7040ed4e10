"""What makes a healthy run sick, for tests of the diagnosis; found by `fit` through their class paths."""

import time

import torch
from lightning.pytorch import Callback

from lightning_gpt.data import TokenData

BROKEN_AT = 7
"""Optimizer steps done when a number breaks."""


class KillUnits(Callback):
    """200 of the second block's hidden units are off for every input."""

    def on_train_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.net.blocks[1].feed_forward.up.bias[:200] = -20.0


class BreakForward(Callback):
    """The second block's activation overflows."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == BROKEN_AT:
            pl_module.net.blocks[1].feed_forward.activation = lambda x: x * float("inf")


class BreakBackward(Callback):
    """The first block's activation is finite, its derivative is not."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == BROKEN_AT:
            pl_module.net.blocks[0].feed_forward.activation = lambda x: torch.sqrt(x * 0)


class Spikes(Callback):
    """Every twelfth gradient is 500 times too large."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step % 12 == BROKEN_AT:
            for parameter in pl_module.parameters():
                parameter.grad *= 500


class Changed(TokenData):
    """Batches that `change` has been at."""

    def change(self, batch):
        raise NotImplementedError

    def train_dataloader(self):
        loader = super().train_dataloader()
        make = loader._make

        def changed(*args):
            for batch in make(*args):
                self.change(batch)
                yield batch

        loader._make = changed
        return loader


class SlowData(Changed):
    """Batches that take several times a step to come."""

    def change(self, batch):
        time.sleep(0.05)


class ShuffledTargets(Changed):
    """Targets that have nothing to do with their inputs."""

    def change(self, batch):
        targets = batch["targets"].flatten()
        batch["targets"] = targets[torch.randperm(len(targets))].view_as(batch["targets"])
