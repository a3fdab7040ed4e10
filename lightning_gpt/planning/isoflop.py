"""Iso-FLOP profiles (Hoffmann et al., 2022, section 3.2): at each budget a parabola of the loss in log N, its minimum
the best size; through the minima N_opt ~ C^a.

Where few runs were made at equal FLOPs, each size's loss at a budget is read between its own runs: log loss over
log FLOPs by monotone cubic interpolation (Fritsch & Carlson, 1980), never beyond them. This is what a grid of sizes and
token counts has to offer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME = 1.1
"""Budgets within this factor are one."""
LEAST_SIZES = 3
INTERPOLATED = 5
"""Budgets that are read off a grid."""


@dataclass(frozen=True)
class Profile:
    """The losses of one budget and the parabola through them."""

    flops: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    coefficients: tuple[float, float, float]
    """Of (log N)^2, log N and 1."""
    interpolated: bool

    @property
    def curved(self) -> bool:
        """Whether the parabola has a minimum."""
        return self.coefficients[0] > 0

    @property
    def best_size(self) -> float:
        """N at the minimum."""
        square, line, _ = self.coefficients
        return math.exp(-line / (2 * square))

    @property
    def inside(self) -> bool:
        """Whether the minimum lies among the sizes: beyond them it is a guess."""
        return self.curved and min(self.sizes) <= self.best_size <= max(self.sizes)

    def loss(self, size):
        """Of the parabola."""
        return np.polyval(self.coefficients, np.log(size))


@dataclass(frozen=True)
class IsoFlop:
    """All profiles and the line through their minima."""

    profiles: list[Profile]
    a: float | None
    """N_opt ~ C^a; None: fewer than two minima among the sizes."""
    factor: float | None
    """N_opt = factor C^a."""


def isoflop(sizes: Sequence[float], flops: Sequence[float], losses: Sequence[float]) -> IsoFlop | None:
    """Profiles of runs; None where no budget has three sizes.

    Args:
        sizes: N (n).
        flops: C (n).
        losses: L (n).
    """
    sizes, flops, losses = (np.asarray(values, dtype=float) for values in (sizes, flops, losses))
    ways = [_measured(sizes, flops, losses), _between(sizes, flops, losses)]
    # A grid of token counts may meet at a few budgets by chance: what shows more minima is taken, measured on a tie.
    profiles = max(ways, key=lambda way: (sum(one.inside for one in way), len(way)))
    if not profiles:
        return None
    found = [(one.flops, one.best_size) for one in profiles if one.inside]
    if len(found) < 2:
        return IsoFlop(profiles, None, None)
    a, offset = np.polyfit(*np.log(np.array(found)).T, 1)
    return IsoFlop(profiles, float(a), float(np.exp(offset)))


def _profile(flops: float, sizes: np.ndarray, losses: np.ndarray, interpolated: bool) -> Profile:
    coefficients = np.polyfit(np.log(sizes), losses, 2)
    return Profile(float(flops), tuple(sizes), tuple(losses), tuple(map(float, coefficients)), interpolated)


def _measured(sizes: np.ndarray, flops: np.ndarray, losses: np.ndarray) -> list[Profile]:
    """Of runs whose budgets lie within SAME."""
    order = np.argsort(flops)
    groups: list[list[int]] = []
    for i in order:
        if groups and flops[i] <= SAME * flops[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    kept = [group for group in groups if len(_distinct(sizes[group])) >= LEAST_SIZES]
    return [_profile(np.exp(np.log(flops[g]).mean()), sizes[g], losses[g], False) for g in kept]


def _between(sizes: np.ndarray, flops: np.ndarray, losses: np.ndarray) -> list[Profile]:
    """Of budgets that at least three sizes have runs below and above."""
    from scipy.interpolate import PchipInterpolator

    curves = []
    for size in _distinct(sizes):
        own = np.isclose(sizes, size, rtol=1e-3)
        budgets = _distinct(flops[own])
        if len(budgets) > 1:
            means = [losses[own & np.isclose(flops, budget, rtol=1e-3)].mean() for budget in budgets]
            curves.append((size, np.log(budgets), np.log(means)))
    if len(curves) < LEAST_SIZES:
        return []
    starts, ends = sorted(x[0] for _, x, _ in curves), sorted(x[-1] for _, x, _ in curves)
    profiles = []
    for at in np.linspace(starts[LEAST_SIZES - 1], ends[-LEAST_SIZES], INTERPOLATED):
        read = [(n, math.exp(PchipInterpolator(x, y)(at))) for n, x, y in curves if x[0] - 1e-9 <= at <= x[-1] + 1e-9]
        if len(read) >= LEAST_SIZES:
            profiles.append(_profile(math.exp(at), *np.array(read).T, True))
    return profiles


def _distinct(values: np.ndarray) -> list[float]:
    """Ascending, those within a thousandth of one another once."""
    kept: list[float] = []
    for value in np.sort(values):
        if not kept or value > kept[-1] * 1.001:
            kept.append(float(value))
    return kept
