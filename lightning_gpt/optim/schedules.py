"""Learning-rate schedules as pure functions of the optimizer step.

`factor(step, total_steps)` multiplies each group's own learning rate; `step` counts the updates already done, so the
first update uses factor(0). All warm up alike, as nanoGPT does: (step + 1) / (warmup_steps + 1) while
step < warmup_steps, which neither wastes an update on zero nor reaches the peak before `warmup_steps` updates.
"""

import math
import warnings
from abc import ABC, abstractmethod
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class ScheduleSpec(ABC):
    """Which schedule, with which settings; `lightning_gpt.optim.Cosine` and its siblings are the choices.

    Args:
        warmup_steps: optimizer steps of linear warm-up from zero.
        decay_steps: optimizer step at which the decay ends; null = the last step of the run.
    """

    needs_total = True
    """Whether the schedule must know where it ends."""

    def __init__(self, warmup_steps: int = 0, decay_steps: int | None = None) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; set it to 0 (no warm-up) or above")
        if decay_steps is not None and decay_steps <= warmup_steps:
            raise ValueError(
                f"decay_steps is {decay_steps}, within the warm-up; set it above warmup_steps = {warmup_steps}"
            )
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps

    def factor(self, step: int, total_steps: int | None = None) -> float:
        """Multiplier of the learning rate after `step` updates, in [0, 1].

        Args:
            step: updates already done.
            total_steps: updates of the whole run; `decay_steps` goes before it.

        Raises:
            ValueError: the schedule ends somewhere and neither argument says where.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self._after_warmup(step, self._end(total_steps))

    def build(self, optimizer: Optimizer, total_steps: int | None = None) -> LambdaLR:
        """A scheduler to step once after each update. Its state_dict holds numbers only, no function.

        Args:
            optimizer: its groups keep the ratios of their learning rates.
            total_steps: updates of the whole run; null or -1 where it is open-ended.

        Raises:
            ValueError: as `factor`.
        """
        end = self._end(total_steps)
        if end is not None and 1 < end <= self.warmup_steps:
            warnings.warn(
                f"warmup_steps is {self.warmup_steps} in a run of {end} steps: it ends before the peak learning rate",
                stacklevel=2,
            )
        # A partial, unlike a callable object, leaves nothing of itself in the scheduler's state_dict.
        return LambdaLR(optimizer, partial(self.factor, total_steps=total_steps))

    @abstractmethod
    def _after_warmup(self, step: int, end: int | None) -> float:
        """The factor for step >= warmup_steps; `end` is None only without `needs_total`."""

    def _end(self, total_steps: int | None) -> int | None:
        end = self.decay_steps if self.decay_steps is not None else total_steps
        if end is not None and end > 0:
            return end
        if self.needs_total:
            raise ValueError(
                f"{type(self).__name__} needs to know where it ends, but total_steps is {total_steps}; "
                "set trainer.max_steps, or decay_steps of the schedule"
            )
        return None


class Constant(ScheduleSpec):
    """Warm-up, then the peak learning rate for ever.

    Args:
        warmup_steps: optimizer steps of linear warm-up.
    """

    needs_total = False

    def __init__(self, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)

    def _after_warmup(self, step: int, end: int | None) -> float:
        return 1.0


class InverseSqrt(ScheduleSpec):
    """Warm-up, then proportional to 1 / sqrt(step) (Vaswani et al., 2017): needs no end.

    Args:
        warmup_steps: optimizer steps of linear warm-up; after w of them the factor is sqrt(w / step). Above 0.
    """

    needs_total = False

    def __init__(self, warmup_steps: int = 100) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}; set it to at least 1: decay begins there")
        super().__init__(warmup_steps)

    def _after_warmup(self, step: int, end: int | None) -> float:
        return math.sqrt(self.warmup_steps / step)


class Cosine(ScheduleSpec):
    """Warm-up, then half a cosine down to `final_ratio` (GPT-3, Chinchilla, nanoGPT).

    Args:
        warmup_steps: optimizer steps of linear warm-up.
        final_ratio: learning rate at the end, as a fraction of the peak.
        decay_steps: optimizer step at which the decay ends (nanoGPT's lr_decay_iters); null = the last step.
    """

    def __init__(self, warmup_steps: int = 0, final_ratio: float = 0.1, decay_steps: int | None = None) -> None:
        super().__init__(warmup_steps, decay_steps)
        self.final_ratio = _checked_ratio(final_ratio)

    def _after_warmup(self, step: int, end: int) -> float:
        kept = _COOLDOWNS["cosine"](_progress(step, self.warmup_steps, end))
        return self.final_ratio + (1 - self.final_ratio) * kept


class Linear(ScheduleSpec):
    """Warm-up, then a straight line down to `final_ratio`.

    Args:
        warmup_steps: optimizer steps of linear warm-up.
        final_ratio: learning rate at the end, as a fraction of the peak.
        decay_steps: optimizer step at which the decay ends; null = the last step.
    """

    def __init__(self, warmup_steps: int = 0, final_ratio: float = 0.0, decay_steps: int | None = None) -> None:
        super().__init__(warmup_steps, decay_steps)
        self.final_ratio = _checked_ratio(final_ratio)

    def _after_warmup(self, step: int, end: int) -> float:
        kept = _COOLDOWNS["linear"](_progress(step, self.warmup_steps, end))
        return self.final_ratio + (1 - self.final_ratio) * kept


class WSD(ScheduleSpec):
    """Warm-up, stable, decay (Hu et al., 2024, arXiv:2404.06395): the peak until a short cool-down at the end.

    The stable part does not depend on the length of the run, so one run can be cooled down at several lengths.

    Args:
        warmup_steps: optimizer steps of linear warm-up.
        decay_fraction: part of the run that cools down, in (0, 1].
        shape: of the cool-down: linear, sqrt (1 - sqrt(progress), Hägele et al., 2024, arXiv:2405.18392) or cosine.
        final_ratio: learning rate at the end, as a fraction of the peak.
        decay_steps: optimizer step at which the cool-down ends; null = the last step.
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        decay_fraction: float = 0.2,
        shape: Literal["linear", "sqrt", "cosine"] = "linear",
        final_ratio: float = 0.0,
        decay_steps: int | None = None,
    ) -> None:
        super().__init__(warmup_steps, decay_steps)
        if not 0 < decay_fraction <= 1:
            raise ValueError(f"decay_fraction is {decay_fraction}; set it above 0 and at most 1")
        if shape not in _COOLDOWNS:
            raise ValueError(f"shape is {shape!r}; choose one of {', '.join(_COOLDOWNS)}")
        self.decay_fraction = decay_fraction
        self.shape = shape
        self.final_ratio = _checked_ratio(final_ratio)

    def _after_warmup(self, step: int, end: int) -> float:
        start = max(self.warmup_steps, end - round(self.decay_fraction * end))
        kept = _COOLDOWNS[self.shape](_progress(step, start, end))
        return self.final_ratio + (1 - self.final_ratio) * kept


_COOLDOWNS = {
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, in [0, 1]."""
    return min(1.0, max(0, step - start) / max(1, end - start))


def _checked_ratio(final_ratio: float) -> float:
    if not 0 <= final_ratio <= 1:
        raise ValueError(f"final_ratio is {final_ratio}; give a fraction of the peak learning rate from 0 to 1")
    return final_ratio
