"""What data modules share: a stream of training samples that goes on where a checkpoint left it."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gpt.data.loader import TrainLoader


class ResumableData(LightningDataModule):
    """A data module whose training position is one number: samples consumed by all ranks.

    Subclasses set `seed`, `num_workers` and `pin_memory`, and put the loader they make in `_train_loader`.
    """

    seed: int | None
    num_workers: int
    pin_memory: bool | None

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: TrainLoader | None = None
        self._loaded_by: object = None  # the Trainer of _train_loader
        self._resumed: dict[str, Any] = {}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for equal training data."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the data come from, for messages."""

    def __str__(self) -> str:
        """For messages; Lightning's own would open all data to count them."""
        return f"{type(self).__name__} of {self.place}"

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of training samples stands, and of what it is. Empty outside training."""
        if self._train_loader is None:
            return {}
        return {
            **self._train_loader.state_dict(),
            "seed": self._train_loader.windows.seed,
            "fingerprint": self.fingerprint,
            "samples_per_step": self._train_loader.global_batch_size * self._train_loader.accumulate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint's position. It is checked when training asks for data: evaluation may use others."""
        self._resumed = dict(state_dict)
        self._train_loader = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the stream, so that processes can be spawned with it."""
        return {**self.__dict__, "_train_loader": None, "_loaded_by": None}

    def _consumed_samples(self) -> int:
        if self._train_loader is not None and self._loaded_by is self.trainer:
            return (
                self._train_loader.consumed_samples
            )  # asked again in the same fit (reload_dataloaders_every_n_epochs)
        trained_on = self._resumed.get("fingerprint", self.fingerprint)
        if trained_on != self.fingerprint:
            raise ValueError(
                f"{self.place} holds another corpus (fingerprint {self.fingerprint[:12]}) than the "
                f"checkpoint was trained on ({trained_on[:12]}): name that one, or start a new run from "
                "the checkpoint's weights"
            )
        return int(self._resumed.get("consumed_samples", 0))

    def _stream_seed(self) -> int:
        saved = self._resumed.get("seed")
        if self.seed is None:
            return int(os.environ.get("PL_GLOBAL_SEED", "0")) if saved is None else saved
        if saved not in (None, self.seed):
            rank_zero_warn(
                f"data seed={self.seed} replaces the checkpoint's {saved}: another order of samples from here"
            )
        return self.seed

    def _position(self) -> dict[str, Any]:
        """Where the stream begins, and how it is dealt out."""
        trainer = self.trainer
        consumed = self._consumed_samples()
        self._loaded_by = trainer
        self._tell_another_batch()
        return {
            "consumed_samples": consumed,
            "accumulate": 1 if trainer is None else trainer.accumulate_grad_batches,
            "repeat": bool(trainer is not None and trainer.overfit_batches),
            "batches_done": None
            if trainer is None
            else lambda: trainer.fit_loop.epoch_loop.batch_progress.total.processed,
        }

    def _tell_another_batch(self) -> None:
        """Warns when an optimizer step takes another number of samples than before the checkpoint."""
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        before, now = self._resumed.get("samples_per_step"), getattr(self, "batch_size", 0) * accumulated
        now *= self._placement()["world_size"]
        if before not in (None, now):
            rank_zero_warn(
                f"an optimizer step takes {now} samples from here, it took {before} before the checkpoint, and the "
                "schedule counts steps: to go on as before, choose data.batch_size x devices x "
                f"trainer.accumulate_grad_batches = {before}"
            )

    def _placement(self) -> dict[str, Any]:
        """What loaders need to know of this process."""
        rank, world_size, on_gpu = 0, 1, False
        if self.trainer is not None:
            # Tensor-parallel processes read the same batches; only their strategy knows which they are.
            placed = self.trainer.distributed_sampler_kwargs or {}  # None: one device
            rank, world_size = placed.get("rank", 0), placed.get("num_replicas", 1)
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return {
            "rank": rank,
            "world_size": world_size,
            "prefetch": self.num_workers > 0,
            "pin_memory": on_gpu if self.pin_memory is None else self.pin_memory,
        }
