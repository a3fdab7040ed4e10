"""Levels of a run's loss, and the advice about its learning rate that follows from its numbers."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from lightning_gpt.callbacks.diagnosis_report import CannotJudge
from lightning_gpt.callbacks.diagnosis_signals import Series, Signals

POINTS, STEPS, SHARE = 8, 30, 0.3
"""Logged losses, optimizer steps and part of the run after the warm-up before the loss is judged: a healthy run passes
ln V and the unigram entropy within that."""
NEAR = 0.03
"""Share within which two losses are the same: four times the noise of a healthy run's logged losses (below 1%)."""
TRIVIAL = 0.75
"""Of ln V, where the unigram entropy is not known: it is 0.7 to 0.75 of that for characters and for BPE alike."""
RATIO = 0.05
"""Update over initial weights of a step at the full rate, to aim at: AdamW's 1e-3 at standard deviation 0.02."""
RATIO_HIGH = 0.6
"""Of the same: healthy runs are below (AdamW 1e-2: 0.5), those at three times that learn frequencies only."""


class Course(NamedTuple):
    """The training loss after the warm-up: medians of its quarters, and where it came from."""

    start: float
    """The first logged, or ln V where that is more."""
    early: float
    """First quarter."""
    second: float
    end: float
    """Last quarter."""
    best: float
    worst: float
    """Of the four."""

    @property
    def flat(self) -> bool:
        """It has not fallen since the second quarter."""
        return self.second - self.end < NEAR * self.second


def course(run: Signals) -> Course:
    """Levels of the loss.

    Raises:
        CannotJudge: the run is too short.
    """
    loss, first = run.judged_loss, run["loss"]
    steps = run.last_step - run.warmup_end
    planned = (run.facts.max_steps or 0) - run.warmup_end
    if len(loss) < POINTS or steps < STEPS:
        raise CannotJudge(
            f"too short: {len(loss)} logged losses in {max(steps, 0)} steps after warm-up, needs {POINTS} in {STEPS}"
        )
    if steps < SHARE * planned:
        raise CannotJudge(f"too early: step {run.last_step} of {run.facts.max_steps}")
    levels = [loss.part(quarter / 4, (quarter + 1) / 4).median for quarter in range(4)]
    start = float(first.values[0])
    if run.uniform is not None and not run.facts.pretrained:
        start = max(start, run.uniform)  # the first window has fallen already
    return Course(start, levels[0], levels[1], levels[-1], min(levels), max(levels))


def trivial_level(run: Signals, levels: Course) -> float:
    """The loss of knowing frequencies only: measured, or a guess from ln V or from where the run began."""
    return run.facts.unigram or TRIVIAL * (run.uniform or levels.start)


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def rounded(value: float) -> str:
    """A learning rate to try: one digit."""
    return f"{float(f'{value:.0e}'):g}"


def better_rate(run: Signals) -> str:
    """Advice: the rate at which a step would move the weights by RATIO of their size."""
    if run.peak_ratio:
        return f"try a rate of {rounded(run.peak_lr * RATIO / run.peak_ratio)}"
    return ""


def lower_rate(run: Signals) -> str:
    """Advice: better_rate where the rate is known to be too high, or else a third."""
    if run.peak_ratio and run.peak_ratio > RATIO_HIGH:
        return f"lower the learning rate: {better_rate(run)}"
    return f"lower the learning rate to a third{f' ({rounded(run.peak_lr / 3)})' if run.peak_lr else ''}"


def level_in_words(run: Signals, level: float) -> str:
    """A loss beside what it takes to know nothing, or frequencies only."""
    known = [("ln V", run.uniform), ("the tokens' frequencies", run.facts.unigram)]
    beside = [f"{name}: {value:.2f}" for name, value in known if value]
    return f"{level:.2f}" + (f" ({', '.join(beside)})" if beside else "")


def steadily_falling(run: Signals) -> bool:
    """Whether the loss, smoothed, falls from each third of the run to the next by more than its noise."""
    loss = run.judged_loss
    thirds = [loss.part(third / 3, (third + 1) / 3) for third in range(3)]
    error = loss.noise * math.sqrt(2 / max(len(thirds[0]), 1))
    return all(before.values.mean() - after.values.mean() > error for before, after in itertools.pairwise(thirds))


def binned(series: Series, bins: int = 40) -> Series:
    """Means over equal numbers of neighbours, at most so many: a dense log and a sparse one look alike."""
    width = -(-len(series) // bins)
    whole = len(series) // width * width
    return Series(series.steps[:whole].reshape(-1, width)[:, -1], series.values[:whole].reshape(-1, width).mean(axis=1))


def around(loss: Series, step: float) -> float:
    """The training loss at a step: the median of the logged values there, a tenth of the run wide."""
    width = max(0.05 * loss.steps[-1], np.sort(np.abs(loss.steps - step))[min(2, len(loss) - 1)])
    return float(np.median(loss.values[np.abs(loss.steps - step) <= width]))
