"""What a diagnosis is made from: a run's logged numbers, and the few facts of its settings that give them a meaning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

ALIASES: dict[str, tuple[str, ...]] = {
    "loss": (
        "train/loss",
        "train_loss",
        "train/loss_step",
        "train_loss_step",
        "loss",
        "train_loss_epoch",
        "Loss/train",
    ),
    "val_loss": ("val/loss", "val_loss", "valid_loss", "validation_loss", "val/loss_epoch", "eval/loss", "Loss/val"),
    "lr": ("optim/lr", "lr", "learning_rate", "train/lr", "train/learning_rate"),
    "gradient_norm": ("optim/gradient_norm", "grad_norm", "gradient_norm", "train/grad_norm", "grad_2.0_norm_total"),
    "gradient_norm_max": ("diagnosis/gradient_norm_max",),
    "clipped": ("diagnosis/clipped",),
    "update_ratio": ("diagnosis/update_ratio",),
    "gradient_depth": ("diagnosis/gradient_depth",),
    "dead_units": ("diagnosis/dead_units",),
    "dead_units_worst": ("diagnosis/dead_units_worst",),
    "dead_units_layer": ("diagnosis/dead_units_layer",),
    "data_wait": ("speed/data_wait",),
    "tokens": ("progress/tokens", "total_tokens", "tokens", "tokens_seen", "train/tokens", "train/total_tokens"),
}
"""Signal -> names under which it is logged, ours first. Of LearningRateMonitor's `lr-AdamW` the first is taken."""


@dataclass(frozen=True)
class Series:
    """One number over training."""

    steps: np.ndarray
    """(N,) ascending optimizer steps."""
    values: np.ndarray
    """(N,), finite."""

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: float) -> "Series":
        """What comes after a step."""
        keep = self.steps > step
        return Series(self.steps[keep], self.values[keep])

    def part(self, begin: float, end: float) -> "Series":
        """The points between two shares of the series; at least one."""
        first = min(int(begin * len(self)), len(self) - 1)
        last = max(first + 1, math.ceil(end * len(self)))
        return Series(self.steps[first:last], self.values[first:last])

    @property
    def median(self) -> float:
        """Of the values."""
        return float(np.median(self.values))

    @property
    def noise(self) -> float:
        """Standard deviation about a smooth course: from the median size of second differences, which neither a trend
        nor single jumps disturb (for white noise their deviation is sqrt(6) times the values')."""
        if len(self) < 3:
            return 0.0
        return float(np.median(np.abs(np.diff(self.values, n=2))) / 0.6745 / math.sqrt(6))


EMPTY = Series(np.zeros(0, dtype=int), np.zeros(0))


@dataclass
class Facts:
    """What the numbers alone do not say; None: not known."""

    max_steps: int | None = None
    clip: float | None = None
    """Norm at which gradients are clipped."""
    optimizer: str | None = None
    lr: float | None = None
    """Peak learning rate of the matrices, as it is set."""
    init_std: float | None = None
    pretrained: bool = False
    """Training began from a trained network: its loss has no long way to fall."""
    parameters: int | None = None
    vocab_size: int | None = None
    unigram: float | None = None
    """Entropy of the training tokens' frequencies, nats per token: what is reached by knowing them alone."""
    train_tokens: int | None = None
    """Tokens of the training split."""
    batch_tokens: int | None = None
    """Tokens of an optimizer step."""
    update_per_lr: float | None = None
    """Update over weights in the first optimizer step, per unit of learning rate; SGD's with its momentum added up."""

    def merged(self, other: "Facts") -> "Facts":
        """These, with the other's where these are not known."""
        mine = {one.name: getattr(self, one.name) for one in fields(self)}
        return Facts(
            **{name: getattr(other, name) if value in (None, False) else value for name, value in mine.items()}
        )

    @classmethod
    def of(cls, values: Any) -> "Facts":
        """From a dictionary; what is not known by name is left out."""
        names = {one.name for one in fields(cls)}
        given = values if isinstance(values, Mapping) else {}
        return cls(**{name: value for name, value in given.items() if name in names})


@dataclass
class Signals:
    """A run, as the rules see it."""

    raw: Mapping[str, Series]
    """By logged name; values may be infinite or NaN."""
    facts: Facts = field(default_factory=Facts)
    found_non_finite: dict[str, Any] = field(default_factory=dict)
    """step and place where training stopped for it, when that is known."""
    _cache: dict[str, Series] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, float]], facts: Facts | None = None) -> "Signals":
        """From rows of metrics.jsonl."""
        points: dict[str, dict[int, float]] = {}
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    points.setdefault(name, {})[int(row["step"])] = float(value)
        made = {}
        for name, of in points.items():
            steps = sorted(of)
            made[name] = Series(np.array(steps), np.array([of[step] for step in steps]))
        return cls(made, facts or Facts())

    def name(self, signal: str) -> str | None:
        """Under which the run logged a signal; None: it did not."""
        found = next((name for name in ALIASES[signal] if name in self.raw), None)
        if found is None and signal == "lr":
            found = next((name for name in sorted(self.raw) if name.startswith("lr-")), None)
        return found

    def __getitem__(self, signal: str) -> Series:
        """Finite points of a signal; empty when it was not logged."""
        if signal not in self._cache:
            name = self.name(signal)
            series = EMPTY if name is None else self.raw[name]
            keep = np.isfinite(series.values)
            self._cache[signal] = Series(series.steps[keep], series.values[keep])
        return self._cache[signal]

    @property
    def last_step(self) -> int:
        """The last that anything was logged for."""
        return max((int(one.steps[-1]) for one in self.raw.values() if len(one)), default=0)

    @cached_property
    def warmup_end(self) -> int:
        """The last step of the warm-up: before the learning rate first comes within 1% of its largest. 0: none."""
        lr = self["lr"]
        if not len(lr):
            return 0
        peak = int(np.argmax(lr.values >= 0.99 * lr.values.max()))
        return int(lr.steps[peak - 1]) if peak else 0

    @cached_property
    def judged_loss(self) -> Series:
        """The training loss after the warm-up."""
        return self["loss"].after(self.warmup_end)

    @property
    def uniform(self) -> float | None:
        """ln V: the loss of a network that knows nothing."""
        return math.log(self.facts.vocab_size) if self.facts.vocab_size else None

    @property
    def peak_lr(self) -> float | None:
        """The largest learning rate so far."""
        return float(self["lr"].values.max()) if len(self["lr"]) else self.facts.lr

    @property
    def peak_ratio(self) -> float | None:
        """Update over weights of one step at the peak rate and the initial weights: measured, or for Adam, whose first
        update is the rate itself, from the initialisation."""
        if self.peak_lr is None:
            return None
        per_lr = self.facts.update_per_lr
        if per_lr is None and (self.facts.optimizer or "").startswith("Adam") and self.facts.init_std:
            per_lr = 1 / self.facts.init_std
        return None if per_lr is None else per_lr * self.peak_lr

    @property
    def movement(self) -> float | None:
        """How far the weights can have come, in units of their own size: the sum of all update ratios."""
        ratio = self["update_ratio"]
        if len(ratio):
            return float(np.trapezoid(np.append(ratio.values[:1], ratio.values), np.append(0, ratio.steps)))
        if self.peak_ratio is None or not self["lr"].values.size:
            return None
        lr = self["lr"]
        # Adam's later updates are about a third of the first: gradients of successive batches disagree.
        return float(np.trapezoid(np.append(lr.values[:1], lr.values), np.append(0, lr.steps))) * (
            self.peak_ratio / self.peak_lr / 3
        )

    @cached_property
    def batch_tokens(self) -> float | None:
        """Tokens of an optimizer step."""
        tokens = self["tokens"]
        if len(tokens) and tokens.steps[-1] > 0:
            return float(tokens.values[-1] / tokens.steps[-1])
        return self.facts.batch_tokens

    @cached_property
    def interval(self) -> float:
        """Optimizer steps between two logged losses."""
        steps = self["loss"].steps
        return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
