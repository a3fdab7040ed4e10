"""SIGTERM, Ctrl-C, SIGUSR1: finish the step, save, leave, together on all ranks."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_gpt.callbacks.checkpoints import LastCheckpoint
from lightning_gpt.parallel.vote import Vote

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGUSR1") if hasattr(signal, name)]
"""What is listened to; where ranks hear different ones the last in this list counts."""


class Interrupted(SystemExit):
    """The run was asked to stop and has saved; exits with 128 + signal number, as shells expect."""

    def __init__(self, number: int, path: Path | None, step: int, requeued: str = "") -> None:
        super().__init__(128 + number)
        where = f"saved {path} at step {step}; continue with --ckpt_path last" if path else "nothing was saved"
        self.message = f"stopped by {signal.Signals(number).name}: {where}{requeued}"


class GracefulStop(Callback):
    """On the first signal that any rank hears, all ranks complete the running optimizer step, write last.ckpt and exit
    with 128 + its number; a second signal stops a process at once. Signals inside a step would otherwise leave
    half-updated weights to be saved.

    SIGTERM (exit status 143) comes from Kubernetes before it takes a pod away, from torchrun when it ends, from SLURM
    at a job's time limit, and from preemption; SIGINT (130) from Ctrl-C. SIGUSR1 (138) and SIGUSR2 (140) mean "save,
    you will run again": `sbatch --signal=USR1@120` sends it to every rank two minutes before the time limit. Inside a
    SLURM job the first rank then calls `scontrol requeue`, once; Lightning's own handlers are switched off, for they
    save in the middle of a step and requeue as well. Elsewhere the exit status tells: in Kubernetes a podFailurePolicy
    can ignore 143, in SLURM RequeueExit can list 143.

    Args:
        grace_seconds: from a signal to the end of the process, saved or not; a checkpoint cut off by it leaves the
            one before it whole. Keep it below what follows the signal with SIGKILL: 30 seconds in Kubernetes
            (terminationGracePeriodSeconds), torchrun and SLURM (KillWait). Null = as long as it takes. Ctrl-C has no
            such limit.
        requeue: whether SIGUSR1 and SIGUSR2 requeue a SLURM job.
    """

    def __init__(self, grace_seconds: float | None = 25.0, requeue: bool = True) -> None:
        if grace_seconds is not None and grace_seconds <= 0:
            raise ValueError(f"stop.grace_seconds={grace_seconds} must be positive, or null for no limit")
        self.grace_seconds, self.requeue = grace_seconds, requeue
        self._heard = 0  # 1 + place in SIGNALS; 0 = nothing
        self._step = 0
        self._leaving: int | None = None  # the signal after which this validation is the last thing done
        self._previous: dict[int, object] = {}
        self._vote: Vote | None = None
        self._deadline: threading.Timer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepares the vote."""
        if stage != "fit":
            return
        # Lightning's handlers broadcast inside the signal handler, where the other ranks are in another collective,
        # and its loop broadcasts before every micro-batch whether one has heard. The vote replaces both.
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._vote = Vote() if trainer.world_size > 1 else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals (only the main thread may): before this there is nothing to save, and they end at once."""
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        self._heard = max(self._heard, 1 + SIGNALS.index(number))
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        self._start_clock(number)

    def _start_clock(self, number: int) -> None:
        if self.grace_seconds is None or number == signal.SIGINT or self._deadline is not None:
            return
        self._deadline = threading.Timer(self.grace_seconds, self._leave_unsaved, (number,))
        self._deadline.daemon = True
        self._deadline.start()

    def _leave_unsaved(self, number: int) -> None:
        """A whole checkpoint never depends on the time that is left: it is renamed into place when it is complete."""
        print(
            f"stopped by {signal.Signals(number).name}: the step and its checkpoint took longer than "
            f"stop.grace_seconds={self.grace_seconds:g}; continue from the last one with --ckpt_path last",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The ranks exchange what they have heard while they update the weights."""
        if self._vote is not None and pl_module.automatic_optimization:
            self._vote.begin(self._heard)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Leaves at the end of a step."""
        if trainer.global_step == self._step:
            return  # inside an accumulation
        self._step = trainer.global_step
        # One rank may hear it first: all leave together, or a collective would wait for ever.
        heard = self._heard if self._vote is None else self._vote.end(self._heard)
        if not heard:
            return
        number = SIGNALS[heard - 1]
        self._start_clock(number)
        loop = trainer.fit_loop
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._leave(trainer, number)
        # A run continued from before a validation that is due would leave it out: leave after it. In case the grace
        # ends within it, this much is saved.
        self._leaving = number
        if (saver := _saver(trainer)) is not None:
            saver.save_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves after the validation that was due."""
        if self._leaving is not None:
            self._leave(trainer, self._leaving)

    def _leave(self, trainer: Trainer, number: int) -> NoReturn:
        saver = _saver(trainer)
        saved = saver is not None and saver.save_now(trainer, final=True)
        requeued = ""
        if self.requeue and saved and trainer.is_global_zero and number not in (signal.SIGINT, signal.SIGTERM):
            requeued = requeue_slurm_job()
        raise Interrupted(number, saver.path(trainer) if saved else None, trainer.global_step, requeued)

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._deadline is not None:  # all is saved
            self._deadline.cancel()
            self._deadline = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self._release()


def _saver(trainer: Trainer) -> LastCheckpoint | None:
    return next((one for one in trainer.callbacks if isinstance(one, LastCheckpoint)), None)


def requeue_slurm_job() -> str:
    """Asks SLURM to run this job again; what came of it, to be told. Nothing outside a SLURM job."""
    job = os.environ.get("SLURM_JOB_ID")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        job = f"{array}_{task}"
    if not job or not re.fullmatch(r"[0-9_]+", job):
        return ""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        return f"; SLURM job {job} could not be requeued ({reason}): submit it again"
    return f"; SLURM job {job} is queued again"
