"""TensorBoard's HPARAMS and CUSTOM SCALARS tabs: what a run was set to, how it ended, which curves lie over another.

What a run says for them is kept in event files of their own, `*.hparams`, that a resumed run replaces: TensorBoard
holds to the first description of a run that it finds, and would show the settings and the end of the first attempt
for ever. No run describes the table's columns (its Experiment message): TensorBoard takes the first such description
for all runs, and finds the union of columns, those that differ first, only when there is none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

SUFFIX = ".hparams"
"""End of the names of these event files."""
LAYOUT: dict[str, dict[str, str]] = {
    "loss": {
        "training and validation": r"(train|val)/loss$",
        "training": r"train/loss$",
        "validation": r"val/loss$",
        "validation, bits per byte": r"val/bits_per_byte$",
    },
    "optimizer": {"learning rate": r"optim/lr$", "gradient norm": r"optim/gradient_norm$"},
    "speed": {"tokens per second": r"speed/tokens_per_second$", "MFU": r"speed/mfu$"},
    "progress": {"tokens": r"progress/tokens$"},
}
"""Category -> chart -> pattern of tags; the charts lay the selected runs over another."""
FINAL, COST = "Final/", "Final_cost/"
"""Begin the tags of a row's metrics. TensorBoard shows the first five columns unasked, and sorts capitals before what
runs log along the way."""
STATUSES = {"success": 1, "failure": 2}
"""Numbers of tensorboard.hparams.Status."""


def final_tag(metric: str) -> str:
    """The tag of a metric's final value: val/loss -> Final/val_loss."""
    return FINAL + metric.replace("/", "_")


def open_writer(directory: Path) -> Any:
    """A SummaryWriter whose file's name ends in SUFFIX."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), filename_suffix=SUFFIX)


def start_session(directory: Path, hyperparameters: Mapping[str, bool | int | float | str]) -> None:
    """Writes a run's row of the HPARAMS table and its layout, in place of what an earlier attempt wrote.

    Args:
        directory: the run's; a row is named by it.
        hyperparameters: column -> value.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    for left in directory.glob(f"*tfevents*{SUFFIX}"):
        left.unlink()
    writer = open_writer(directory)
    writer.file_writer.add_summary(hparams_pb(dict(hyperparameters), trial_id=directory.as_posix()), 0)
    write_layout(writer)
    writer.close()


def write_layout(writer: Any, more: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Writes LAYOUT, and `more` of its form, for the CUSTOM SCALARS tab; TensorBoard merges those of several runs."""
    layout = {**LAYOUT, **(more or {})}
    writer.add_custom_scalars(
        {
            category: {chart: ["Multiline", [tag]] for chart, tag in charts.items()}
            for category, charts in layout.items()
        }
    )


def end_session(
    directory: Path, status: Literal["success", "failure"], metrics: Mapping[str, float], step: int
) -> None:
    """Writes how a run ended: the row's status, and its metrics as scalars of one point.

    Args:
        directory: the run's.
        status: what the table shows.
        metrics: tag -> value.
        step: optimizer step of the values.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    end = HParamsPluginData(session_end_info=SessionEndInfo(status=STATUSES[status]))
    described = metadata.create_summary_metadata(end)
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=described, tensor=metadata.NULL_TENSOR)
    writer = open_writer(directory)
    for tag, number in metrics.items():
        writer.add_scalar(tag, number, step)
    writer.file_writer.add_summary(Summary(value=[value]), 0)
    writer.close()


class Board(TensorBoardLogger):
    """Lightning's TensorBoardLogger with a session of curated hyper-parameters instead of all 30.

    Args:
        save_dir, name, version: as Lightning's.
        hyperparameters: columns of the HPARAMS tab; None: the run has no row there.
        **kwargs: Lightning's others, such as purge_step.
    """

    def __init__(
        self,
        save_dir: str,
        name: str,
        version: int,
        hyperparameters: Mapping[str, bool | int | float | str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name=name, version=version, default_hp_metric=False, **kwargs)
        self.hyperparameters = hyperparameters

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SummaryWriter. The session is written before it opens its file: TensorBoard's reader in Python reads
        files by age and leaves one for good when there is a younger one."""
        if self._experiment is None and self.hyperparameters is not None:
            start_session(Path(self.log_dir), self.hyperparameters)
        return super().experiment

    def end(self, status: Literal["success", "failure"], metrics: Mapping[str, float], step: int) -> None:
        """Ends the session, if there is one."""
        if self.hyperparameters is not None:
            self.save()
            end_session(Path(self.log_dir), status, metrics, step)
