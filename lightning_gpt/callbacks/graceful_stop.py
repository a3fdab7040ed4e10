"""SIGTERM and Ctrl-C: finish the step, save, leave."""

import signal
import threading
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.callbacks.checkpoints import LastCheckpoint


class Interrupted(SystemExit):
    """The run was asked to stop and has saved; exits with 128 + signal number, as shells expect."""

    def __init__(self, number: int, path: Path | None, step: int) -> None:
        super().__init__(128 + number)
        where = f"saved {path} at step {step}; continue with --ckpt_path last" if path else "nothing was saved"
        self.message = f"stopped by {signal.Signals(number).name}: {where}"


class GracefulStop(Callback):
    """On the first SIGINT or SIGTERM completes the running optimizer step, writes last.ckpt and exits; a second
    signal stops at once. Signals inside a step would otherwise leave half-updated weights to be saved."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._step = 0
        self._previous: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals (only the main thread may)."""
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Leaves at the end of a step."""
        if trainer.global_step == self._step:
            return  # inside an accumulation
        self._step = trainer.global_step
        received = self._received
        if trainer.world_size > 1:
            # One rank may hear it first: all leave together, or a collective would wait for ever.
            received = int(trainer.strategy.reduce_boolean_decision(received is not None, all=False)) and (
                received or signal.SIGTERM
            )
        if not received:
            return
        saver = next((c for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)
        saved = saver is not None and saver.save_now(trainer, final=True)
        raise Interrupted(received, saver.path(trainer) if saved else None, trainer.global_step)

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._release()
