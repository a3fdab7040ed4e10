"""Is a reward model as sure as it should be? A picture after each validation."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.objectives.reward import calibration
from lightning_gpt.tasks.reward_model import RewardModel

FILE = "calibration.png"


class CalibrationPlot(Callback):
    """Draws, for reward models, how often the preferred answer is the better one against how sure the model was.

    calibration.png of the run; on the diagonal the model is as sure as it should be, below it too sure.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws this rank's pairs; other tasks have none."""
        if not isinstance(pl_module, RewardModel) or trainer.sanity_checking or trainer.fast_dev_run:
            return
        directory = trainer.log_dir  # a broadcast: every rank takes part
        difference_B = pl_module.validation_differences
        if not trainer.is_global_zero or directory is None or not len(difference_B):
            return
        from matplotlib.figure import Figure

        predicted, right, count = calibration(difference_B)
        full = count > 0
        error = (count[full] * (predicted[full] - right[full]).abs()).sum() / count.sum()
        figure = Figure(figsize=(4.5, 4))
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], color="black", linewidth=0.8)
        axes.scatter(predicted[full], right[full], s=200 * (count[full] / count.sum()).sqrt(), alpha=0.7)
        axes.set(
            xlabel="probability that the model gives",
            ylabel="share that was right",
            title=f"step {trainer.global_step}, {len(difference_B):,} pairs, calibration error {error:.3f}",
            xlim=(0.48, 1.02),
            ylim=(0, 1.05),
        )
        axes.title.set_fontsize(9)
        figure.tight_layout()
        temporary = Path(directory, f".{FILE}.tmp.png")
        figure.savefig(temporary, dpi=110)
        temporary.replace(Path(directory, FILE))
