"""Every logged number as a line of metrics.jsonl: what reports and figures are made of."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class JsonlLogger(Logger):
    """Appends {"step": optimizer step, name: value, ...} per call to `directory`/metrics.jsonl.

    Args:
        directory: the run's directory.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.jsonl"

    @property
    def name(self) -> str:
        """Of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """There is one file a run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where the file lies."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one line; Lightning's own `epoch` is left out."""
        row = {"step": step} | {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if len(row) > 1:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the lines after `step`: a resumed run will write them again."""
        if self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            temporary.replace(self.path)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl; a last line cut off by a kill is ignored."""
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
