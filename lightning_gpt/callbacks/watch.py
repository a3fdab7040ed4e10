"""What ends a job of many ranks in bounded time, with one line that says why."""

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import PrefixStore, Store
from torch.optim import Optimizer

from lightning_gpt.callbacks.graceful_stop import Interrupted
from lightning_gpt.callbacks.run_settings import flat_settings
from lightning_gpt.parallel.agreement import check_agreement, must_agree, versions
from lightning_gpt.parallel.rank_failure import RankFailure, described, is_lost_connection
from lightning_gpt.parallel.watchdog import Watchdog


class Watch(Callback):
    """Watches over the ranks of a run, and over a single process that stalls.

    An error on one rank, a rank that is killed or lost, and a rank that stalls each end all ranks within seconds, with
    one line that names the rank. Ranks that were started with other settings, data, code or package versions than
    rank 0 are refused before they train.

    Args:
        seconds: without a step or a batch of validation, from the first step to the last, before the run is declared
            stalled: every rank writes its Python stacks (on GPUs also its last collectives) to stacks/ in the run's
            directory, the rank that lags is named, and the run ends. Compiling counts; null = never.
        dead_seconds: without a sign of life before a rank is declared gone. A rank whose process has ended is noticed
            at once, at the next step.
        collective_seconds: timeout of the process group's operations, after which NCCL ends the process
            (TORCH_NCCL_ASYNC_ERROR_HANDLING, on by default); null = the strategy's own (30 minutes).
        directory: for stacks; null = stacks/ in the run's directory.
    """

    def __init__(
        self,
        seconds: float | None = 900.0,
        dead_seconds: float = 60.0,
        collective_seconds: float | None = None,
        directory: str | None = None,
    ) -> None:
        for name, value in (
            ("seconds", seconds),
            ("dead_seconds", dead_seconds),
            ("collective_seconds", collective_seconds),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"watchdog.{name}={value} must be positive")
        self.seconds, self.dead_seconds, self.collective_seconds = seconds, dead_seconds, collective_seconds
        self.directory = directory
        self.dog: Watchdog | None = None
        self.settings: dict[str, Any] = {}
        self._store: Store | None = None

    def prepare(self, trainer: Trainer, settings: dict[str, Any], dog: Watchdog | None = None) -> None:
        """Before the process group exists.

        Args:
            trainer: whose strategy gets the timeout.
            settings: the whole configuration, which ranks must agree on.
            dog: that has watched since the ranks met, where they were launched from outside.
        """
        self.settings, self.dog = settings, dog
        if self.collective_seconds is not None and hasattr(trainer.strategy, "_timeout"):
            trainer.strategy._timeout = timedelta(seconds=self.collective_seconds)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts watching, then compares what the ranks were started with.

        Raises:
            ValueError: on all ranks, when one differs.
        """
        store = self._store = _store(trainer.global_rank) if trainer.world_size > 1 else None
        if self.dog is None:
            self.dog = Watchdog(store, trainer.global_rank, trainer.world_size)
            self.dog.start()
        self.dog.note(trainer.global_step, "before the first step")
        self.dog.dead_seconds, self.dog.directory = self.dead_seconds, self._stacks(trainer)
        if store is not None:
            if trainer.strategy.root_device.type == "cuda":
                self.dog.directory.mkdir(parents=True, exist_ok=True)  # NCCL writes there, but makes no directory
            _dismiss_observer()
            facts = must_agree(flat_settings(self.settings)) | versions()
            check_agreement(store, trainer.global_rank, trainer.world_size, facts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the ranks' data: rows are tokens only since the model has handed over its tokenizer.

        Raises:
            ValueError: on all ranks, when one differs.
        """
        if self._store is not None:
            facts = {"data fingerprint": getattr(trainer.datamodule, "fingerprint", None)}
            check_agreement(PrefixStore("data", self._store), trainer.global_rank, trainer.world_size, facts)

    def _stacks(self, trainer: Trainer) -> Path:
        return Path(self.directory) if self.directory else Path(trainer.default_root_dir) / "stacks"

    # --- where it is ---------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """A batch has been read. Before the first one nobody knows how long it takes to prepare a run."""
        self.dog.stalled_seconds = self.seconds
        self.dog.note(trainer.global_step, "forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss) -> None:
        """The loss is there."""
        self.dog.note(trainer.global_step, "backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gradients are there."""
        self.dog.note(trainer.global_step, "optimizer")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Callbacks and the next batch follow."""
        self.dog.note(trainer.global_step, "between steps")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor how long what follows may take."""
        self.dog.stalled_seconds = None

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Long validations are no stall."""
        self.dog.note(trainer.global_step, "validation", batch[2] + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        self.dog.note(trainer.global_step, "validation", 1 << 30)

    # --- how it ends ---------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end, on this rank."""
        if self.dog is not None:
            self.dog.end()
            self.dog = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finds out who failed first and lets the others know; `exception` is given the `cause_of_end` and a message
        for run.json."""
        dog, self.dog = self.dog, None
        if dog is None:
            return
        if trainer.world_size > 1 and not isinstance(exception, Interrupted):
            if is_lost_connection(exception):
                failure = dog.cause()
            else:
                failure = dog.fail(described(exception, trainer.global_rank))
            if failure.rank != trainer.global_rank or is_lost_connection(exception):
                exception.cause_of_end = RankFailure(failure, trainer.global_rank)
                exception.message = failure.message
        dog.end()


def _store(rank: int) -> Store:
    """The process group's, under names of this run alone: it may serve several runs, one after the other."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = PrefixStore("lightning_gpt", _get_default_store())
    return PrefixStore(f"run/{store.add(f'runs/{rank}', 1)}", store)


def _dismiss_observer() -> None:
    """Lightning's thread kills this process, without a word, five seconds after another rank has ended: also when
    that was in good order, and this one is still saving."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []


def record_collectives(directory: Path) -> None:
    """Turns NCCL's flight recorder on: after a timeout each rank leaves its last collectives in `directory`, to be
    read with `python -m torch.distributed.flight_recorder.fr_trace`. What the environment says already, wins."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(directory / "nccl_rank_"))
