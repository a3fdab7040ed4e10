"""An experiment in TensorBoard: one table of its cells, with what the variants change as columns, one set of charts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gpt.callbacks.board import SUFFIX, end_session, final_tag, open_writer, start_session, write_layout
from lightning_gpt.callbacks.run_settings import curated_settings, flat_settings
from lightning_gpt.experiments.settings import nested, read_yaml


@dataclass(frozen=True)
class BoardCell:
    """One run of an experiment, as its table shows it."""

    directory: Path
    """Of the run: where config.yaml and its event files are."""
    variant: str
    seed: int
    overrides: Mapping[str, Any]
    """Dotted settings that make the variant."""
    metrics: Mapping[str, float]
    """Final values; empty for a run that diverged."""
    status: str = "done"
    """done, or how it ended otherwise."""
    step: int = 0
    """Optimizer step of the metrics."""


def write_experiment_board(root: Path, cells: Sequence[BoardCell], metrics: Sequence[str]) -> Path:
    """Writes what `tensorboard --logdir <root>` shows in HPARAMS and CUSTOM SCALARS.

    Into `root` the columns of the table - variant, seed, each setting in which variants differ, each metric - and the
    layout; into each cell's directory its row, in place of the row that the run wrote about itself.

    Args:
        root: above all cells: runs/experiments/<chapter>/<name>.
        cells: finished ones.
        metrics: names of metrics, the most important first.

    Returns:
        the event file in `root`.

    Raises:
        ValueError: no cells.
    """
    if not cells:
        raise ValueError(f"{root}: no cells to show in TensorBoard")
    rows = _rows(cells)
    for cell, row in zip(cells, rows):
        start_session(cell.directory, {**_own_settings(cell), **row})
        final = {final_tag(name): value for name, value in cell.metrics.items()}
        end_session(cell.directory, "success" if cell.status == "done" else "failure", final, cell.step)
    for left in root.glob(f"*tfevents*{SUFFIX}"):
        left.unlink()
    writer = open_writer(root)
    writer.file_writer.add_summary(_description(rows, [final_tag(name) for name in metrics]), 0)
    write_layout(writer, {"this experiment": {name: rf"{name}$" for name in metrics}})
    writer.close()
    return max(root.glob(f"*tfevents*{SUFFIX}"))


def _own_settings(cell: BoardCell) -> dict[str, Any]:
    """What the run's own row had: seen when TensorBoard looks at more than this experiment."""
    path = cell.directory / "config.yaml"
    return curated_settings(read_yaml(path)) if path.exists() else {}


def _rows(cells: Sequence[BoardCell]) -> list[dict[str, bool | float | str]]:
    """variant, seed and each setting that differs, of every cell; a column has values of one type."""
    chosen = [flat_settings(nested(dict(cell.overrides))) for cell in cells]
    names = dict.fromkeys(name for one in chosen for name in one)
    rows: list[dict[str, Any]] = [{"variant": cell.variant, "seed": cell.seed} for cell in cells]
    configs = [cell.directory / "config.yaml" for cell in cells]
    full = [flat_settings(read_yaml(path)) if path.exists() else {} for path in configs]
    for name in names:
        values = [one.get(name, whole.get(name)) for one, whole in zip(chosen, full)]
        if len({json.dumps(value, sort_keys=True) for value in values}) < 2:
            continue
        if not _one_type(values):
            values = [value if isinstance(value, str) else json.dumps(value) for value in values]
        for row, value in zip(rows, values):
            row[name] = value
    return rows


def _one_type(values: list[Any]) -> bool:
    return any(
        all(isinstance(value, kind) and isinstance(value, bool) == (kind is bool) for value in values)
        for kind in (bool, int | float, str)
    )


def _description(rows: list[dict[str, Any]], metrics: list[str]) -> Any:
    """The Experiment message: columns with their values, and metrics."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    columns = []
    for name in rows[0]:
        values = sorted({row[name] for row in rows})
        kind = "BOOL" if isinstance(values[0], bool) else "STRING" if isinstance(values[0], str) else "FLOAT64"
        column = api_pb2.HParamInfo(name=name, type=f"DATA_TYPE_{kind}", differs=len(values) > 1)
        column.domain_discrete.extend(values)
        columns.append(column)
    described = api_pb2.Experiment(
        hparam_infos=columns,
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    value = Summary.Value(
        tag=metadata.EXPERIMENT_TAG,
        metadata=metadata.create_summary_metadata(HParamsPluginData(experiment=described)),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])
