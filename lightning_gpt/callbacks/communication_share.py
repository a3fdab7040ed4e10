"""How much of a step goes into collectives, and how much of that nothing hides: from a profile of a few steps."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_gpt.callbacks.training_metrics import TrainingMetrics

Interval = tuple[float, float]
"""Begin and end; half-open."""
GLOO = "gloo:"
"""Begins the names of what gloo's threads do; an interval is from its start to its end, waits for peers included."""
NCCL = "nccl"
"""Is in the names of NCCL's kernels."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments as intervals that do not overlap, ascending."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > begin:
            found.append((begin, end))
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Of intervals that do not overlap."""
    return sum(end - begin for begin, end in intervals)


def overlap(first: list[Interval], second: list[Interval]) -> float:
    """Length of what two unions share."""
    return length(first) + length(second) - length(union([*first, *second]))


@dataclass
class Share:
    """Of one rank, in seconds over all profiled steps."""

    seconds: float
    """Of the steps, by the clock."""
    collectives: float
    """In which at least one collective ran."""
    exposed: float
    """In which one ran and nothing was computed: waits, and what travels while nothing else is to do."""
    by_name: dict[str, dict[str, float]] = field(default_factory=dict)
    """Collective -> count and seconds, each alone."""

    @property
    def share(self) -> float:
        """Of the time, exposed communication."""
        return self.exposed / self.seconds if self.seconds else 0.0

    @property
    def hidden(self) -> float:
        """Of the time, communication beside computing."""
        return (self.collectives - self.exposed) / self.seconds if self.seconds else 0.0


def measure_share(events: Iterable[Any], seconds: float) -> Share:
    """Reads a profile.

    On a GPU, collectives are NCCL's kernels and computing is every other kernel and copy of the device. On CPU,
    collectives are what gloo's threads do, and computing is every operator.

    Args:
        events: of torch.profiler's profile.events(); times in microseconds.
        seconds: that the profiled steps took.
    """
    sent: list[Interval] = []
    computed: list[Interval] = []
    names: dict[str, dict[str, float]] = {}
    events = list(events)
    kernels = [e for e in events if str(e.device_type).endswith(("CUDA", "PrivateUse1")) and not e.is_user_annotation]
    for event in kernels or events:
        span = (event.time_range.start, event.time_range.end)
        collective = NCCL in event.name.lower() if kernels else event.name.startswith(GLOO)
        if collective:
            sent.append(span)
            one = names.setdefault(event.name.partition("(")[0], {"count": 0, "seconds": 0.0})
            one["count"] += 1
            one["seconds"] += (span[1] - span[0]) / 1e6
        elif kernels or event.name.startswith(("aten::", "torch::distributed::reducer")):
            computed.append(span)
    sent, computed = union(sent), union(computed)
    return Share(seconds, length(sent) / 1e6, (length(sent) - overlap(sent, computed)) / 1e6, names)


class CommunicationShare(Callback):
    """Profiles some optimizer steps on every rank and tells how much of them is communication, once a run:

    - speed/communication_share: of a step, in collectives while nothing is computed (mean over ranks);
    - speed/communication_hidden: of a step, in collectives beside computing.

    A JSON file has both of every rank, and which collectives they are. A rank that comes late lets the others wait in
    theirs, so what a share holds is also imbalance. Profiled steps are slower; they are left out of
    speed/tokens_per_second.

    Selected by `--trainer.callbacks+=lightning_gpt.callbacks.CommunicationShare`.

    Args:
        after: optimizer steps of this run before, at least 1: the first ones allocate, compile and make buckets.
        steps: that are profiled.
        path: of the JSON file, within the run's directory.

    Raises:
        ValueError: numbers that cannot be.
    """

    def __init__(self, after: int = 5, steps: int = 3, path: str = "communication_share.json") -> None:
        for name, value in (("after", after), ("steps", steps)):
            if value < 1:
                raise ValueError(f"CommunicationShare.{name}={value} must be at least 1")
        self.after, self.steps, self.path = after, steps, path
        self.shares: list[Share] = []
        """Of every rank, once measured."""
        self._profile: torch.profiler.profile | None = None
        self._began = 0
        self._clock = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here."""
        self._began = trainer.global_step
        if trainer.world_size == 1:
            rank_zero_warn("CommunicationShare: one process alone sends nothing, its share is 0")
        elif 0 < trainer.max_steps < self._began + self.after + self.steps:
            rank_zero_warn(
                f"CommunicationShare: trainer.max_steps={trainer.max_steps} ends before {self.after} + {self.steps} "
                "steps: nothing is measured"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Starts the profile."""
        if self._profile is not None or self.shares or trainer.global_step != self._began + self.after:
            return
        self._metrics(trainer, "pause")
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it complains on stderr where there is no GPU
        cuda = pl_module.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] * cuda)]
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()
        self._clock = self._now(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Ends the profile after the last step and tells."""
        if self._profile is None or trainer.global_step < self._began + self.after + self.steps:
            return
        seconds = self._now(pl_module) - self._clock
        profile, self._profile = self._profile, None
        profile.stop()
        share = measure_share(profile.events(), seconds)
        self.shares = [share]
        if trainer.world_size > 1:
            self.shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(self.shares, share)
        ranks = len(self.shares)
        means = {
            "speed/communication_share": sum(one.share for one in self.shares) / ranks,
            "speed/communication_hidden": sum(one.hidden for one in self.shares) / ranks,
        }
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step)
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir) / self.path, trainer, means)

    @staticmethod
    def _now(pl_module: LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()

    @staticmethod
    def _metrics(trainer: Trainer, call: str) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, TrainingMetrics):
                getattr(callback, call)()

    def _write(self, path: Path, trainer: Trainer, means: dict[str, float]) -> None:
        content = {
            **{name.partition("/")[2]: value for name, value in means.items()},
            "step": trainer.global_step,
            "steps": self.steps,
            "strategy": type(trainer.strategy).__name__,
            "ranks": [
                {
                    "step_seconds": one.seconds / self.steps,
                    "collective_seconds": one.collectives / self.steps,
                    "exposed_seconds": one.exposed / self.steps,
                    "collectives": one.by_name,
                }
                for one in self.shares
            ],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
