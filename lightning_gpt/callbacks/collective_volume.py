"""What a step sends between processes: collectives and MiB, logged."""

from contextlib import ExitStack

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import is_initialized

from lightning_gpt.parallel.collectives import Collectives, recorded_collectives


class CollectiveVolume(Callback):
    """Logs communication/collectives and communication/mib of every optimizer step that is logged, all micro-batches
    of it and everything else in it that asks the other processes. Other steps cost nothing, these some milliseconds.

    Add it with `--trainer.callbacks+=lightning_gpt.callbacks.CollectiveVolume`. MiB are those of the tensors that the
    first rank gives to collectives, whatever their algorithm makes of them: a ring all-reduce over n processes sends
    each of them 2 (n - 1) / n times.
    """

    def __init__(self) -> None:
        self._recording = ExitStack()
        self._collectives: Collectives | None = None
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Begins with the first micro-batch of a step."""
        if self._collectives is None and is_initialized() and pl_module.about_to_log:
            self._collectives, self._step = self._recording.enter_context(recorded_collectives()), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Logs after the last."""
        if self._collectives is None or trainer.global_step == self._step:
            return
        self._recording.close()
        found, self._collectives = self._collectives, None
        metrics = {"communication/collectives": len(found), "communication/mib": found.bytes / 2**20}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
