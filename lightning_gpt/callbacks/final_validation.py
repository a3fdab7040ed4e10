"""A run's last word is a validation of its last weights."""

from lightning.pytorch import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Validates when training ends, unless the last step was just validated: Lightning stops at max_steps wherever the
    validation interval stands."""

    def __init__(self) -> None:
        self._step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers what has been validated."""
        self._step = trainer.global_step

    def state_dict(self) -> dict[str, int]:
        """So that a run that ended is not validated again when it is continued to where it stands."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Inverse of state_dict."""
        self._step = state_dict["step"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the validation loop of fit once more, before last.ckpt is written."""
        if self._step == trainer.global_step or trainer.fast_dev_run or not trainer.enable_validation:
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
