"""Checkpoints that are never half-written, never stale and never poisoned."""

import errno
import os
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class SaveError(OSError, RuntimeError):
    """A checkpoint could not be written; the one before it is as it was."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a reader sees the old file or the new, never half.

    A full disk leaves the old file in place and raises SaveError naming it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves `checkpoint` at `path`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in target.parent.glob(f".{target.name}.*.tmp"):
            left_by_a_kill.unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as RuntimeError ("PytorchStreamWriter failed").
            temporary.unlink(missing_ok=True)
            old = f"the previous {target} is untouched" if target.exists() else "no earlier checkpoint exists there"
            number = error.errno if isinstance(error, OSError) else errno.EIO
            raise SaveError(number, f"could not save a checkpoint ({error}); {old}", str(target)) from error


class _Saver(Checkpoint):
    """What both savers share."""

    def __init__(self, dirpath: str | None, filename: str) -> None:
        self.dirpath = dirpath
        self.filename = filename

    def path(self, trainer: Trainer) -> Path:
        """Where this saver writes."""
        root = Path(self.dirpath) if self.dirpath else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        return root / self.filename

    def save(self, trainer: Trainer) -> bool:
        """Saves unless the run is sick; whether it did."""
        if trainer.fast_dev_run or not trainer.lightning_module.is_finite():
            return False
        trainer.save_checkpoint(self.path(trainer), weights_only=False)
        return True


class BestCheckpoint(_Saver):
    """Keeps the checkpoint with the best validation metric in best.ckpt.

    It is ranked right after the validation that measured it: a metric of another step can never rank it.

    Args:
        monitor: name of a metric that validation logs.
        mode: whether smaller or larger is better.
        dirpath: directory; null = checkpoints/ in the run's directory.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", dirpath: str | None = None
    ) -> None:
        super().__init__(dirpath, "best.ckpt")
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.best_step = 0
        self.best_model_path = ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares and saves."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"best.monitor={self.monitor!r} was not logged by validation; logged: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        before = self.state_dict()
        if not self.path(trainer).exists():
            self.best_score = None  # resumed into another directory: a record without its checkpoint counts for nothing
        better = self.best_score is None or (score < self.best_score if self.mode == "min" else score > self.best_score)
        if score == score and better:
            self.best_score, self.best_step = score, trainer.global_step
            self.best_model_path = str(self.path(trainer))
            if not self.save(trainer):
                self.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """The record to beat after a resume."""
        return {"score": self.best_score, "step": self.best_step, "path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.best_score, self.best_step = state_dict["score"], state_dict["step"]
        self.best_model_path = state_dict["path"]


class LastCheckpoint(_Saver):
    """Keeps the newest state in last.ckpt: what a killed run continues from.

    Args:
        every_n_steps: optimizer steps between saves; null = only by time and at the end.
        every_n_minutes: minutes between saves; null = only by steps and at the end.
        dirpath: directory; null = checkpoints/ in the run's directory.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 5.0,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(dirpath, "last.ckpt")
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"last.{name}={value} must be positive, or null to switch it off")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._step = 0
        self._saved_at = time.monotonic()
        self._ask_at, self._asked = 0, (0, self._saved_at)
        self._postponed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here."""
        self._step, self._saved_at = trainer.global_step, time.monotonic()
        self._ask_at, self._asked = 0, (self._step, self._saved_at)

    def _due(self, trainer: Trainer, step: int, before: int) -> bool:
        if self.every_n_steps and step // self.every_n_steps > before // self.every_n_steps:
            return True
        if not self.every_n_minutes:
            return False
        now = time.monotonic()
        due = now - self._saved_at >= 60 * self.every_n_minutes
        if trainer.world_size == 1:
            return due
        # Every rank must decide alike, and clocks differ: rank 0 decides, and says after how many steps it is to be
        # asked again. To ask at every step would cost each of them two broadcasts; a save may be a hundredth late.
        if step < self._ask_at:
            return False
        a_step = (now - self._asked[1]) / max(step - self._asked[0], 1)
        self._asked = (step, now)
        patience = 0.01 * 60 * self.every_n_minutes
        due, wait = trainer.strategy.broadcast((due, min(max(int(patience / a_step), 1), 1000)))
        self._ask_at = step + wait
        return due

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Saves when due, only where an optimizer step has just been completed."""
        step, before = trainer.global_step, self._step
        self._step = step
        if step == before or not self._due(trainer, step, before):
            return
        # A run continued from before a validation that was due would leave it out: save after it.
        loop = trainer.fit_loop
        self._postponed = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._postponed:
            self.save_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was due before the validation; best.ckpt has been ranked by now."""
        if self._postponed:
            self.save_now(trainer)

    def save_now(self, trainer: Trainer) -> bool:
        """Saves at once."""
        self._postponed = False
        done = self.save(trainer)
        if not done and not trainer.fast_dev_run:
            rank_zero_warn(f"step {trainer.global_step}: loss or gradient is not finite, last.ckpt is kept as it was")
        self._saved_at = time.monotonic()
        return done

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of a run is always saved."""
        self.save_now(trainer)


class RandomState(Callback):
    """Puts the generators' states into every checkpoint, so that dropout continues where it was."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of torch's CPU and CUDA generators; batches have their own counter-based ones."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training goes on: building the model and the loaders in between draws numbers."""
        self._state = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Sets the generators after everything else has been set up."""
        state, self._state = self._state, None
        if state is not None:
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])
