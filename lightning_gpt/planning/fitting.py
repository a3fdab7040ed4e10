"""L(N, D) = E + A / N^alpha + B / D^beta fitted to runs, as Hoffmann et al. (2022, appendix D.2) do.

With a = log A, b = log B, e = log E they minimise

    sum over runs of Huber_delta(LSE(a - alpha log N, b - beta log D, e) - log L),  delta = 1e-3

by L-BFGS from a grid of starts and keep the best. LSE is log-sum-exp, so that all three terms stay positive. Three
things are done to the same minimum:

- The sum is divided by delta^2. It is of the order of 1e-6 otherwise, below what L-BFGS takes for converged: that is
  what made the published fit stop early (Besiroglu et al., 2024).
- log N and log D are centred inside, which makes a and alpha (b and beta) nearly independent of one another.
- L-BFGS runs from 25 of the 4,500 starts, the one with the least objective of each (alpha, beta). On the 240 points
  that Besiroglu et al. read off a figure of Hoffmann et al. all 4,500 find the same minimum, in 28 s instead of 0.2.

Legend: n runs, S points of the grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gpt.planning.laws import SIX_ND, Cost, Count, ParametricLaw

DELTA = 1e-3
GRID = {
    "alpha": np.arange(0, 2.01, 0.5),
    "beta": np.arange(0, 2.01, 0.5),
    "e": np.arange(-1, 1.01, 0.5),
    "a": np.arange(0, 25.1, 5),
    "b": np.arange(0, 25.1, 5),
}
"""Starts of Hoffmann et al., appendix D.2."""
STARTS = 25
LEAST_RUNS = 6
LEAST_LEVELS = 3
"""Sizes, and token counts: with two of one, its factor and its exponent are one number."""


def huber(residual: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond (Huber, 1964)."""
    size = np.abs(residual)
    return np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))


def log_loss(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """LSE of the law.

    Args:
        theta: (a, b, e, alpha, beta), (5) or (5, S, 1).
        log_n: (n).
        log_d: (n).

    Returns:
        (n) or (S, n).
    """
    a, b, e, alpha, beta = theta
    return np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)


@dataclass(frozen=True)
class Data:
    """What is fitted: logarithms of sizes, tokens and losses, (n) each, and how often each run counts."""

    log_n: np.ndarray
    log_d: np.ndarray
    log_l: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, parameters, tokens, losses, weights=None) -> "Data":
        """From plain numbers."""
        logs = [np.log(np.asarray(values, dtype=float)) for values in (parameters, tokens, losses)]
        return cls(*logs, np.ones(len(logs[0])) if weights is None else np.asarray(weights, dtype=float))


def objective(theta: np.ndarray, data: Data) -> tuple[float, np.ndarray]:
    """Weighted sum of the Huber losses over delta^2, and its gradient (5)."""
    a, b, e, alpha, beta = theta
    size, amount = a - alpha * data.log_n, b - beta * data.log_d
    predicted = np.logaddexp(np.logaddexp(size, amount), e)
    residual = predicted - data.log_l
    slope = data.weights * np.clip(residual, -DELTA, DELTA) / DELTA**2
    of_n, of_d = slope * np.exp(size - predicted), slope * np.exp(amount - predicted)
    of_e = slope * np.exp(e - predicted)
    gradient = np.array([of_n.sum(), of_d.sum(), of_e.sum(), -of_n @ data.log_n, -of_d @ data.log_d])
    return float(data.weights @ huber(residual)) / DELTA**2, gradient


def grid_starts(data: Data, starts: int | None) -> np.ndarray:
    """(starts, 5) of the grid: the best of each (alpha, beta) first, by their objective; None = all 4,500.

    Args:
        data: centred or not, the grid is moved along.
        starts: how many.
    """
    axes = [GRID[name] for name in ("a", "b", "e", "alpha", "beta")]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 5)
    if starts is None:
        return points
    residual = log_loss(points.T[:, :, None], data.log_n, data.log_d) - data.log_l
    order = np.argsort(huber(residual) @ data.weights, kind="stable")
    seen: set[tuple[float, float]] = set()
    first, rest = [], []
    for index in order:
        pair = tuple(points[index, 3:])
        (rest if pair in seen else first).append(index)
        seen.add(pair)
    return points[[*first, *rest][:starts]]


def minimise(data: Data, starts: np.ndarray) -> tuple[np.ndarray, float]:
    """The best (a, b, e, alpha, beta) that L-BFGS reaches from some starts, and its objective.

    Args:
        data: see Data.
        starts: (S, 5).
    """
    from scipy.optimize import minimize

    mean_n, mean_d = data.log_n.mean(), data.log_d.mean()
    centred = Data(data.log_n - mean_n, data.log_d - mean_d, data.log_l, data.weights)
    best, least = starts[0], np.inf
    for start in starts:
        moved = start - np.array([start[3] * mean_n, start[4] * mean_d, 0, 0, 0])
        with np.errstate(over="ignore", invalid="ignore"):
            found = minimize(
                objective,
                moved,
                args=(centred,),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20},
            )
        if np.isfinite(found.fun) and found.fun < least:
            best, least = found.x, found.fun
    return best + np.array([best[3] * mean_n, best[4] * mean_d, 0, 0, 0]), float(least)


def fit_theta(data: Data, starts: int | None = STARTS) -> tuple[np.ndarray, float]:
    """The fit from the grid; `starts` as in grid_starts."""
    return minimise(data, grid_starts(data, starts))


def law_of(theta: np.ndarray, name: str = "own", cost: Cost = SIX_ND, counts: Count = "all") -> ParametricLaw:
    """(a, b, e, alpha, beta) -> the law."""
    a, b, e, alpha, beta = map(float, theta)
    return ParametricLaw(name, np.exp(e), np.exp(a), np.exp(b), alpha, beta, cost, counts)


def check_grid(parameters, tokens) -> None:
    """Whether all five constants can be found.

    Raises:
        ValueError: too few runs, sizes or token counts; says which constant is lost and what to add.
    """
    sizes, amounts = len(set(np.round(np.log(parameters), 3))), len(set(np.round(np.log(tokens), 2)))
    for levels, lost, field in ((sizes, "A and alpha", "parameters"), (amounts, "B and beta", "tokens")):
        if levels < LEAST_LEVELS:
            have = f"all have the same {field}" if levels == 1 else f"there are only {levels} different {field}"
            raise ValueError(
                f"runs: {have}, so {lost} cannot be found, nor E, which cannot be told from them: give runs "
                f"of at least {LEAST_LEVELS} different {field}"
            )
    if len(parameters) < LEAST_RUNS:
        raise ValueError(
            f"runs: {len(parameters)} of them cannot tell five constants apart: give at least {LEAST_RUNS}"
        )


def resamples(groups: list, count: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of the runs in bootstrap samples, (n) each: groups are drawn with replacement, all runs of one together.

    Args:
        groups: of each run; seeds of one size and length share the law's misfit and so are one draw.
        count: how many samples.
        seed: of the draws.
    """
    names = sorted(set(groups))
    index = np.array([names.index(group) for group in groups])
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))[index].astype(float)


def bootstrap(
    data: Data,
    groups: list,
    theta: np.ndarray,
    count: int,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(count, 5) fits of resampled runs, each from the whole fit and from starts around it (Efron, 1979).

    Samples with fewer than three sizes or token counts are drawn again.

    Args:
        data: all runs.
        groups: see resamples.
        theta: the fit of all runs.
        count: how many.
        seed: of the draws.
        report: called with how many are done.
    """
    found: list[np.ndarray] = []
    for weights in resamples(groups, 20 * count, seed):
        drawn = weights > 0
        if min(len(set(np.round(logs[drawn], 2))) for logs in (data.log_n, data.log_d)) < LEAST_LEVELS:
            continue
        sample = Data(data.log_n, data.log_d, data.log_l, weights)
        found.append(minimise(sample, around(theta, data))[0])
        if report:
            report(len(found))
        if len(found) == count:
            break
    return np.stack(found)


def around(theta: np.ndarray, data: Data) -> np.ndarray:
    """(3, 5): the fit, and the fit with both exponents smaller and larger, its terms unchanged in the middle.

    E starts at a tenth of the least loss or above: from 0, where the runs may have put it, its logarithm has no slope.
    """
    mean = np.array([data.log_n.mean(), data.log_d.mean()])
    starts = []
    for factor in (1.0, 0.6, 1.5):
        other = theta.copy()
        other[3:] *= factor
        other[:2] += (other[3:] - theta[3:]) * mean
        other[2] = max(other[2], data.log_l.min() + np.log(0.1))
        starts.append(other)
    return np.stack(starts)


def fit_cost(parameters, tokens, flops) -> Cost:
    """C = factor N^power D by least squares in logarithms over runs with a count of FLOPs of their own."""
    log_n = np.log(np.asarray(parameters, dtype=float))
    power, factor = np.polyfit(log_n, np.log(np.asarray(flops, dtype=float) / np.asarray(tokens, dtype=float)), 1)
    return Cost(float(np.exp(factor)), float(power))
