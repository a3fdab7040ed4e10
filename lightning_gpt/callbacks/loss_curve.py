"""The loss curve as a picture."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.callbacks.jsonl_logger import JsonlLogger, read_metrics


def draw_loss_curve(rows: list[dict[str, float]], path: Path, baselines: dict[str, float] | None = None) -> None:
    """Draws train/loss and val/loss over optimizer steps into a PNG.

    Args:
        rows: of metrics.jsonl.
        path: of the picture.
        baselines: name -> nats per token, drawn as horizontal lines.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("train/loss", "train", "-"), ("val/loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points), style, label=f"{label} ({points[-1][1]:.3f})", markersize=4, linewidth=1.4)
    for name, value in (baselines or {}).items():
        axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=f"{name} ({value:.3f})")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # a run shorter than the logging interval has no loss to show
        axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


class LossCurve(Callback):
    """Draws loss.png into the run's directory when training ends.

    Args:
        enabled: whether to draw.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the run's metrics back and draws them."""
        logger = next((one for one in trainer.loggers if isinstance(one, JsonlLogger)), None)
        if not self.enabled or not trainer.is_global_zero or logger is None or not logger.path.exists():
            return
        draw_loss_curve(read_metrics(logger.path), logger.path.with_name("loss.png"))
