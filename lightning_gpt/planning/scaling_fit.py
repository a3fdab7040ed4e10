"""A scaling law fitted to own runs: constants with intervals, and predictions that are held against what came out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_gpt.planning.fitting import Data, bootstrap, check_grid, fit_cost, fit_theta, law_of
from lightning_gpt.planning.isoflop import IsoFlop, isoflop
from lightning_gpt.planning.laws import SIX_ND, Count, ParametricLaw
from lightning_gpt.planning.power_laws import PowerLaw, kaplan_laws
from lightning_gpt.planning.runs import Run

CONSTANTS = ("E", "A", "B", "alpha", "beta", "a", "b")
RESAMPLES = 500
INTERVAL = (2.5, 97.5)
"""Percentiles of 95% intervals."""


@dataclass(frozen=True)
class Prediction:
    """The loss of a run, with the interval in which one run of it should come out."""

    name: str
    parameters: float
    tokens: float
    loss: float
    low: float
    high: float
    measured: float | None = None

    @property
    def verdict(self) -> str:
        """Prediction against outcome."""
        if self.measured is None:
            return ""
        inside = self.low <= self.measured <= self.high
        return f"{self.measured / self.loss - 1:+.2%}, {'inside' if inside else 'outside'} the interval"


@dataclass(frozen=True)
class ScalingFit:
    """Everything that fit.json, fit.md and fit.png are made of."""

    law: ParametricLaw
    """With the runs' own cost of a token; N as `law.counts` says."""
    samples: list[ParametricLaw]
    """Fits of resampled runs."""
    runs: list[Run]
    held: list[Run]
    """Left out of the fit."""
    predictions: list[Prediction]
    power_laws: list[PowerLaw]
    isoflop: IsoFlop | None
    warnings: list[str]

    def sizes(self, runs: Sequence[Run] | None = None) -> np.ndarray:
        """N of the runs, (n)."""
        return np.array([run.size(self.law.counts) for run in (self.runs if runs is None else runs)], dtype=float)

    def flops(self, runs: Sequence[Run] | None = None) -> np.ndarray:
        """C of the runs, (n): their own count, or 6ND where the law's cost is that."""
        runs = self.runs if runs is None else runs
        if self.law.cost == SIX_ND:
            return self.law.cost.flops(self.sizes(runs), np.array([run.tokens for run in runs]))
        return np.array([run.flops for run in runs])

    @property
    def residuals(self) -> np.ndarray:
        """log of measured over fitted loss, (n)."""
        fitted = self.law.loss(self.sizes(), np.array([run.tokens for run in self.runs]))
        return np.log([run.loss for run in self.runs]) - np.log(fitted)

    @property
    def seed_noise(self) -> float | None:
        """Standard deviation of log loss over seeds of one variant, pooled; None: no variant has two."""
        groups = defaultdict(list)
        for run in self.runs:
            groups[run.name, run.tokens].append(np.log(run.loss))
        several = [np.array(group) for group in groups.values() if len(group) > 1]
        if not several:
            return None
        squares = sum(((group - group.mean()) ** 2).sum() for group in several)
        return float(np.sqrt(squares / sum(len(group) - 1 for group in several)))

    def interval(self, constant: str) -> tuple[float, float]:
        """95% of the resampled fits' values of E, A, B, alpha, beta, a or b."""
        return tuple(np.percentile([getattr(one, constant) for one in self.samples], INTERVAL))

    def predict(self, parameters: float, tokens: float, name: str = "", measured: float | None = None) -> Prediction:
        """The loss of one more run.

        The interval is 95% of every resampled fit's value times every residual of the fit, these widened by sqrt(n / (n
        - 5)) for the five constants that have made them small. It knows nothing of how the law may bend outside the
        runs.

        Args:
            parameters: N as the law counts them.
            tokens: D.
            name: of the run.
            measured: what came out.
        """
        n = len(self.runs)
        noise = self.residuals * np.sqrt(n / max(n - 5, 1))
        losses = np.array([one.loss(parameters, tokens) for one in self.samples])
        low, high = np.percentile(losses[:, None] * np.exp(noise), INTERVAL)
        return Prediction(name, parameters, tokens, self.law.loss(parameters, tokens), low, high, measured)


def fit_runs(
    runs: list[Run],
    held: Sequence[Run] = (),
    points: Sequence[tuple[float, float]] = (),
    count: Count = "all",
    analytic: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    warnings: Sequence[str] = (),
    report: Callable[[int], None] | None = None,
) -> ScalingFit:
    """Fits everything.

    Args:
        runs: to fit.
        held: to predict.
        points: other (N, D) to predict.
        count: parameters with embeddings or without.
        analytic: FLOPs as the runs count them; False = 6ND.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        warnings: to carry along.
        report: called with how many resamples are done.

    Raises:
        ValueError: too few runs, or too few sizes or token counts among them, for the five constants.
    """
    warnings = list(warnings)
    sizes, tokens = [run.size(count) for run in runs], [run.tokens for run in runs]
    check_grid(sizes, tokens)
    cost = SIX_ND
    if analytic and all(run.flops for run in (*runs, *held)):
        cost = fit_cost(sizes, tokens, [run.flops for run in runs])
    elif analytic:
        warnings.append("some runs have no training_flops: counted as 6ND")
    data = Data.of(sizes, tokens, [run.loss for run in runs])
    theta, _ = fit_theta(data)
    law = law_of(theta, "own", cost, count)
    budget = max(cost.flops(n, d) for n, d in zip(sizes, tokens))
    law = replace(law, source=f"fit of {len(runs)} runs of up to {budget:.3g} FLOPs")
    groups = [(round(np.log(n), 3), round(np.log(d), 3)) for n, d in zip(sizes, tokens)]
    thetas = bootstrap(data, groups, theta, resamples, seed, report)
    samples = [law_of(one, "resample", cost, count) for one in thetas]
    fit = ScalingFit(law, samples, list(runs), list(held), [], [], None, warnings)
    predictions = [fit.predict(run.size(count), run.tokens, run.name, run.loss) for run in held]
    predictions += [fit.predict(n, d, "asked for") for n, d in points]
    losses = [run.loss for run in runs]
    if min(law.alpha, law.beta) <= 0:
        warnings.append(f"alpha={law.alpha:.3g}, beta={law.beta:.3g}: a loss that rises is no law, see the points")
    if fit.interval("E")[0] < 0.05 * min(losses):
        warnings.append(
            f"E cannot be told from 0 by losses of {min(losses):.3g} and more: what the law says far beyond the runs "
            "may be too low"
        )
    return replace(
        fit,
        predictions=predictions,
        power_laws=kaplan_laws(sizes, tokens, losses),
        isoflop=isoflop(sizes, fit.flops(), losses),
    )
