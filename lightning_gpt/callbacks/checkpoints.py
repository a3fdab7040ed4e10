"""Checkpoints that are never half-written, never stale and never poisoned."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_gpt.callbacks.checkpoint_io import AtomicCheckpointIO, SaveError

Failure = tuple[int, str, str]
"""Of a save: error number, message, target."""


class _Saver(Checkpoint):
    """What both savers share: all ranks decide alike, and storage that fails now and then does not end a run."""

    def __init__(
        self, dirpath: str | None, filename: str, asynchronous: bool, tolerated_failures: int, previous: str | None
    ) -> None:
        if tolerated_failures < 0:
            group = filename.removesuffix(".ckpt")
            raise ValueError(f"{group}.tolerated_failures={tolerated_failures} must be 0 or more")
        self.dirpath = dirpath
        self.filename = filename
        self.asynchronous = asynchronous
        self.tolerated_failures = tolerated_failures
        self.previous = previous
        self.failures = 0
        self.under_way = False
        """Whether this saver's checkpoint may still be being written in the background."""

    def path(self, trainer: Trainer) -> Path:
        """Where this saver writes."""
        root = Path(self.dirpath) if self.dirpath else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        return root / self.filename

    def save(self, trainer: Trainer, final: bool = False) -> bool:
        """Saves unless the run is sick.

        Args:
            trainer: of the run.
            final: there will be no other try: the file is there on return, or SaveError is raised.

        Returns:
            Whether this state is saved, or in the background about to be.

        Raises:
            SaveError: on every rank, one time more in a row than is tolerated.
        """
        settle(trainer, forgiving=final)
        if trainer.fast_dev_run or not _everywhere(trainer, trainer.lightning_module.is_finite()):
            return False
        options: dict[str, Any] = {}
        if self.asynchronous and not final:
            options["asynchronous"] = True
        if self.previous:
            options["previous"] = self.previous
        if options and not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            raise ValueError(f"{sorted(options)} of {self.filename} needs lightning_gpt.callbacks.AtomicCheckpointIO")

        def save() -> None:
            trainer.save_checkpoint(self.path(trainer), weights_only=False, storage_options=options or None)

        failure = _attempt(trainer, save, barrier=True)
        if failure is None:
            self.under_way = "asynchronous" in options
            if not self.under_way:
                self.failures = 0
            return True
        self.failed(failure, final)
        return False

    def failed(self, failure: Failure, final: bool = False) -> None:
        """Warns of a failed save, or ends the run.

        Raises:
            SaveError: it is one too many.
        """
        self.failures += 1
        if final or self.failures > self.tolerated_failures:
            raise SaveError(*failure)
        left = self.tolerated_failures + 1 - self.failures
        rank_zero_warn(f"{failure[1]}; training goes on, {left} more failure{'s' * (left > 1)} in a row would end it")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets a save in the background come to its end; the exception is what is reported."""
        try:
            _wait(trainer)
        except SaveError as error:
            rank_zero_warn(str(error))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is being written any more."""
        _wait(trainer)


def settle(trainer: Trainer, forgiving: bool = False) -> None:
    """Waits for a save in the background, if there is one, and has its saver judge a failure. Every rank calls.

    Args:
        trainer: of the run.
        forgiving: there is one more try to come: warn of a failure however many there were.

    Raises:
        SaveError: on every rank, one time more in a row than is tolerated.
    """
    savers = [c for c in trainer.callbacks if isinstance(c, _Saver) and c.under_way]
    if not savers:
        return
    (saver,) = savers  # each waits for the one before
    saver.under_way = False
    failure = _attempt(trainer, lambda: _wait(trainer))
    if failure is None:
        saver.failures = 0
    elif forgiving:
        rank_zero_warn(failure[1])
    else:
        saver.failed(failure)


def _wait(trainer: Trainer) -> None:
    wait = getattr(trainer.strategy.checkpoint_io, "wait", None)
    if wait is not None:
        wait()


def _attempt(trainer: Trainer, action: Callable[[], None], barrier: bool = False) -> Failure | None:
    """Does something on every rank that only rank 0, or all alike, may fail in; all ranks learn of it.

    Args:
        trainer: of the run.
        action: raises SaveError.
        barrier: the action ends with one, at which the others wait for a rank that failed before it.
    """
    failure = None
    try:
        action()
    except SaveError as error:
        failure = (error.errno, error.strerror, error.filename)
        if barrier:
            trainer.strategy.barrier("Trainer.save_checkpoint")
    return trainer.strategy.broadcast(failure) if trainer.world_size > 1 else failure


def _everywhere(trainer: Trainer, decision: bool) -> bool:
    """Whether all ranks say yes."""
    return trainer.strategy.reduce_boolean_decision(decision, all=True) if trainer.world_size > 1 else decision


class BestCheckpoint(_Saver):
    """Keeps the checkpoint with the best validation metric in best.ckpt.

    It is ranked right after the validation that measured it: a metric of another step can never rank it.

    Args:
        monitor: name of a metric that validation logs.
        mode: whether smaller or larger is better.
        dirpath: directory; null = checkpoints/ in the run's directory.
        asynchronous: as last.asynchronous.
        tolerated_failures: as last.tolerated_failures.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        dirpath: str | None = None,
        asynchronous: bool = False,
        tolerated_failures: int = 3,
    ) -> None:
        super().__init__(dirpath, "best.ckpt", asynchronous, tolerated_failures, None)
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.best_step = 0
        self.best_model_path = ""
        self._before = self.state_dict()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares and saves."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"best.monitor={self.monitor!r} was not logged by validation; logged: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        settle(trainer)  # a record whose file could not be written is none
        self._before = self.state_dict()
        there = self.path(trainer).exists()
        if not (trainer.strategy.broadcast(there) if trainer.world_size > 1 else there):
            self.best_score = None  # resumed into another directory: a record without its checkpoint counts for nothing
        better = self.best_score is None or (score < self.best_score if self.mode == "min" else score > self.best_score)
        if score == score and better:
            self.best_score, self.best_step = score, trainer.global_step
            self.best_model_path = str(self.path(trainer))
            if not self.save(trainer):
                self.load_state_dict(self._before)

    def failed(self, failure: Failure, final: bool = False) -> None:
        """Takes the record back, too."""
        self.load_state_dict(self._before)
        super().failed(failure, final)

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
        asynchronous: copy the state into CPU memory (as much again as the checkpoint is large) and write it while
            training goes on. The next save waits for this one; the last save of a run is never asynchronous.
        tolerated_failures: saves in a row that may fail (full disk, lost network storage) with a warning; one more ends
            the run, and so does a failure of its last save. The checkpoint before is kept in any case.
        keep_previous: keep the checkpoint that last.ckpt replaces as previous.ckpt.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 5.0,
        dirpath: str | None = None,
        asynchronous: bool = False,
        tolerated_failures: int = 3,
        keep_previous: bool = False,
    ) -> None:
        previous = "previous.ckpt" if keep_previous else None
        super().__init__(dirpath, "last.ckpt", asynchronous, tolerated_failures, previous)
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

    def save_now(self, trainer: Trainer, final: bool = False) -> bool:
        """Saves at once.

        Args:
            trainer: of the run.
            final: there will be no other try (see save).

        Raises:
            SaveError: see save.
        """
        self._postponed = False
        failures = self.failures
        done = self.save(trainer, final)
        if not done and not trainer.fast_dev_run and self.failures == failures:
            rank_zero_warn(f"step {trainer.global_step}: loss or gradient is not finite, last.ckpt is kept as it was")
        self._saved_at = time.monotonic()
        return done

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of a run is always saved."""
        self.save_now(trainer, final=True)


class RandomState(Callback):
    """Puts the generators' states of every rank into every checkpoint, so that dropout continues where it was.

    On another number of ranks each takes the state of rank (its own modulo theirs) and stirs in its own number where
    one has been taken already.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of torch's CPU and CUDA generators; batches have their own counter-based ones. Every rank calls."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        trainer = self._trainer
        if trainer is not None and trainer.world_size > 1:
            everybodys: list[dict[str, Any]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(everybodys, state)
            return {"ranks": everybodys}
        return state

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remembers whose ranks to ask."""
        self._trainer = trainer

    _trainer: Trainer | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training goes on: building the model and the loaders in between draws numbers."""
        self._state = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Sets the generators after everything else has been set up."""
        state, self._state = self._state, None
        if state is None:
            return
        states = state.get("ranks", [state])
        rounds, index = divmod(trainer.global_rank, len(states))
        state = states[index]
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if rounds:
            torch.manual_seed(int(torch.randint(2**62, ()).item()) + rounds)
