"""run.json: how a run stands or ended, what it took, which data it saw."""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_gpt.callbacks.board import COST, Board, final_tag
from lightning_gpt.callbacks.jsonl_logger import JsonlLogger, read_metrics
from lightning_gpt.tasks import NonFiniteError

RECORD_FILE = "run.json"


def read_record(directory: Path) -> dict[str, Any]:
    """Content of run.json; empty when it is missing or damaged."""
    try:
        record = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def peak_memory_bytes() -> int | None:
    """The most that this process held: of the GPU's memory where one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def final_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """What a table of runs shows of a run's rows: the last losses, the best one, the cost."""
    last = {tag: value for row in rows for tag, value in row.items() if tag != "step"}
    final = {
        final_tag(tag): value
        for tag, value in last.items()
        if tag == "train/loss" or (tag.startswith("val/") and tag != "val/perplexity")
    }
    validated = [row["val/loss"] for row in rows if "val/loss" in row]
    if validated:
        final[final_tag("val/loss_best")] = min(validated)
    if "progress/tokens" in last:
        final[f"{COST}tokens"] = last["progress/tokens"]
    speeds = [row["speed/tokens_per_second"] for row in rows if "speed/tokens_per_second" in row]
    if speeds:
        final[f"{COST}tokens_per_second"] = statistics.median(speeds)
    return final


class RunRecord(Callback):
    """Keeps `directory`/run.json and ends the run's row in TensorBoard, also when the run fails or is stopped.

    status: running (also after a kill), done, diverged, interrupted (by a signal: it can be resumed) or failed.
    seconds: wall time of all attempts, validations and saving included.

    Args:
        directory: the run's.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.record: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._begin = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the record; a resumed run adds to the seconds of its earlier attempts."""
        before = read_record(self.directory) if trainer.ckpt_path else {}
        self._seconds_before, self._begin = before.get("seconds", 0.0), time.monotonic()
        self.record = {
            "format": 1,
            "attempts": before.get("attempts", 0) + 1,
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            "data_fingerprint": getattr(trainer.datamodule, "fingerprint", None),
        }
        self._write(trainer, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the record fresh, for runs that are killed."""
        if trainer.state.fn == "fit":
            self._write(trainer, "running")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run came to its end, early stopping included."""
        self._end(trainer, "done")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run did not come to its end."""
        if isinstance(exception, NonFiniteError):
            status = "diverged"
        else:
            status = "failed" if isinstance(exception, Exception) else "interrupted"
        message = getattr(exception, "message", None) or str(exception) or type(exception).__name__
        try:
            self._end(trainer, status, message)
        except OSError as error:  # a full disk, say: the exception that is under way says more
            rank_zero_warn(f"{self.directory / RECORD_FILE} could not be brought up to date: {error}")

    def _end(self, trainer: Trainer, status: str, message: str = "") -> None:
        if not self.record:
            return  # it failed before it began
        self._write(trainer, status, message)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        path = next((one.path for one in trainer.loggers if isinstance(one, JsonlLogger)), None)
        metrics = final_metrics(read_metrics(path)) if path and path.exists() else {}
        metrics[f"{COST}seconds"] = self.record["seconds"]
        if self.record["peak_memory_bytes"]:
            metrics[f"{COST}peak_memory_gib"] = self.record["peak_memory_bytes"] / 2**30
        for board in trainer.loggers:
            if isinstance(board, Board):
                board.end("success" if status == "done" else "failure", metrics, trainer.global_step)

    def _write(self, trainer: Trainer, status: str, message: str = "") -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self.record |= {
            "status": status,
            "message": message,
            "step": trainer.global_step,
            "seconds": round(self._seconds_before + time.monotonic() - self._begin, 2),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / RECORD_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
