"""How evenly the experts are used, as numbers and as a picture."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor


def draw_loads(share_LE: Tensor, layers: list[int], step: int):
    """A heat map of loads over the mean: rows are layers, columns are experts.

    Args:
        share_LE: (L, E), rows sum to 1.
        layers: the rows' numbers in the network.
        step: optimizer step.

    Returns:
        a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    load = share_LE.numpy() * share_LE.shape[1]
    figure = Figure(
        figsize=(max(4, 0.5 * load.shape[1] + 2), max(2.2, 0.45 * load.shape[0] + 1.2)), layout="constrained"
    )
    axes = figure.subplots()
    picture = axes.imshow(load, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
    axes.set(xlabel="expert", ylabel="layer", title=f"load over the mean, step {step}")
    axes.set_xticks(range(load.shape[1]))
    axes.set_yticks(range(load.shape[0]), layers)
    if load.size <= 256:
        for row, values in enumerate(load):
            for column, value in enumerate(values):
                color = "white" if abs(value - 1) > 0.7 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(picture)
    return figure


class ExpertMetrics(Callback):
    """With a mixture of experts: logs ExpertLoads' metrics at trainer.log_every_n_steps, and a heat map of the loads
    to TensorBoard and expert_load.png of the run at each validation."""

    def __init__(self) -> None:
        self._last_step = 0
        self._share_LE: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has logged the step that it resumes at."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """At the end of a log interval."""
        loads, step = getattr(pl_module, "expert_loads", None), trainer.global_step
        if loads is None or step == self._last_step or step % trainer.log_every_n_steps:
            return
        self._last_step = step
        metrics, self._share_LE = loads.window(trainer.world_size)
        loads.reset()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last interval's loads."""
        if self._share_LE is None or trainer.sanity_checking:
            return
        directory = trainer.log_dir  # a broadcast: every rank takes part
        if not trainer.is_global_zero:
            return
        layers = [layer for layer, _ in pl_module.expert_loads.layers]
        figure = draw_loads(self._share_LE, layers, trainer.global_step)
        if directory and not trainer.fast_dev_run:
            figure.savefig(Path(directory) / "expert_load.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("experts/load", figure, trainer.global_step)
