"""How often fewer seeds would have given the same verdict: an experiment of many seeds read in parts of a few."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lightning_gpt.experiments.comparisons import comparisons_of, reference, variant_values
from lightning_gpt.experiments.metrics import larger_is_better
from lightning_gpt.experiments.statistics import LEVEL, holm, power

FIGURE_FILE = "fewer_seeds.png"
VERDICTS = ("better", "not distinguishable", "worse")
MOST = 10_000
"""Parts of one size that are read; where there are more, so many are drawn."""
COLORS = dict(zip(VERDICTS, ("C2", "0.8", "C3")))


def verdict_shares(differences: Mapping[str, Sequence[float]], n: int, most: int = MOST) -> dict[str, dict[str, float]]:
    """variant -> verdict of VERDICTS -> in which share of all parts of n seeds the paired t test gives it.

    Each part is judged as a whole experiment would be, Holm's correction over its variants included.

    Args:
        differences: variant -> its value minus its reference's, by seed, in the same order for all; where larger is
            better the other way round, so that better is below zero.
        n: seeds of a part, at least 2 and at most all.
        most: parts; where there are more, so many random ones are read.

    Raises:
        ValueError: variants with different numbers of seeds, or n beyond them.
    """
    lengths = {len(values) for values in differences.values()}
    if len(lengths) != 1 or not 2 <= n <= min(lengths):
        raise ValueError(f"n={n} seeds cannot be chosen of {sorted(lengths)}: all variants need the same, at least n")
    values_VS = np.array(list(differences.values()), dtype=np.float64)
    parts_PN = np.array(list(_parts(values_VS.shape[1], n, most)))
    chosen_VPN = values_VS[:, parts_PN]
    means_VP, spreads_VP = chosen_VPN.mean(-1), chosen_VPN.std(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_VP = means_VP / (spreads_VP / np.sqrt(n))
    p_VP = np.where(np.isnan(t_VP), 1.0, 2 * stats.t.sf(np.abs(t_VP), n - 1))
    found_VP = np.array([holm(list(p_V)) for p_V in p_VP.T]).T < LEVEL
    shares = zip((found_VP & (means_VP < 0)).mean(-1), (~found_VP).mean(-1), (found_VP & (means_VP > 0)).mean(-1))
    return {name: dict(zip(VERDICTS, map(float, one))) for name, one in zip(differences, shares)}


def unpaired_shares(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], n: int, most: int = MOST
) -> dict[str, float] | None:
    """variant -> how often Welch's t test finds a difference between n of its seeds and n others of its reference: what
    the same number of runs is worth without pairing. Holm's correction as in verdict_shares.

    Args:
        pairs: variant -> its values and its reference's, by seed, in the same order for all.
        n: seeds of each side; None is given where the seeds are fewer than twice as many.
        most: random choices.
    """
    values_V2S = np.array([list(both) for both in pairs.values()], dtype=np.float64)
    if 2 * n > (seeds := values_V2S.shape[-1]):
        return None
    generator = np.random.default_rng(0)
    order_PS = generator.permuted(np.tile(np.arange(seeds), (most, 1)), axis=1)
    ours_VPN, theirs_VPN = values_V2S[:, 0][:, order_PS[:, :n]], values_V2S[:, 1][:, order_PS[:, n : 2 * n]]
    p_VP = stats.ttest_ind(ours_VPN, theirs_VPN, axis=-1, equal_var=False).pvalue
    found_PV = np.array([holm(list(p_V)) for p_V in p_VP.T]) < LEVEL
    return dict(zip(pairs, map(float, found_PV.mean(0))))


def _parts(seeds: int, n: int, most: int) -> Iterator[Sequence[int]]:
    """Choices of n out of all seeds: all of them, or `most` drawn with a fixed seed."""
    combinations = itertools.combinations(range(seeds), n)
    first = list(itertools.islice(combinations, most + 1))
    if len(first) <= most:
        return iter(first)
    generator = np.random.default_rng(0)
    return (generator.choice(seeds, n, replace=False) for _ in range(most))


def _pairs(results: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """variant -> its values of the first metric and its reference's, over the seeds that every variant has finished."""
    metric = results["metrics"][0]
    values = {name: variant_values(results, name, metric) for name in results["variants"]}
    seeds = sorted(set.intersection(*(set(one) for one in values.values())))
    by_variant = {name: [one[seed] for seed in seeds] for name, one in values.items()}
    return {name: (by_variant[name], by_variant[reference(results, name)]) for name in list(values)[1:]}


def _differences(results: dict[str, Any]) -> dict[str, list[float]]:
    """By variant, below zero where it is better than its reference."""
    sign = -1 if larger_is_better(results, results["metrics"][0]) else 1
    return {name: [sign * (a - b) for a, b in zip(*both)] for name, both in _pairs(results).items()}


def fewer_seeds_rows(results: dict[str, Any]) -> list[list[str]]:
    """Rows of the report's table: variant, seeds, shares of the verdicts, the power that the t test should have, the
    share of findings without pairing."""
    differences = _differences(results)
    compared, rows = comparisons_of(results, results["metrics"][0]), []
    sizes = [n for n in results.get("fewer_seeds") or [] if n <= len(next(iter(differences.values())))]
    for n in sizes:
        shares, unpaired = verdict_shares(differences, n), unpaired_shares(_pairs(results), n)
        for name, one in shares.items():
            whole = compared[name].difference
            level = LEVEL / len(differences)
            known = f"{power(n, whole.mean, whole.deviation, level):.0%}" if whole.deviation else "-"
            rows.append([f"`{name}`", str(n), *(f"{one[verdict]:.1%}" for verdict in VERDICTS), known])
            rows[-1].append(f"{unpaired[name]:.1%}" if unpaired else "-")
    return rows


def draw_fewer_seeds(results: dict[str, Any], directory: Path) -> Path | None:
    """Draws fewer_seeds.png, a panel a variant: shares of the verdicts over the number of seeds, and the power of the t
    test as a line; None when the experiment did not ask.

    Args:
        results: content of results.json.
        directory: where the picture goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    differences = _differences(results) if results.get("fewer_seeds") else {}
    sizes = [n for n in results.get("fewer_seeds") or [] if n <= len(next(iter(differences.values()), []))]
    if not sizes:
        return None
    compared = comparisons_of(results, results["metrics"][0])
    by_size = {n: verdict_shares(differences, n) for n in sizes}
    figure = Figure(figsize=(1.5 + 4.5 * len(differences), 3.8), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(differences), sharey=True, squeeze=False)[0], differences):
        bottom = np.zeros(len(sizes))
        places = np.arange(len(sizes))
        for verdict in VERDICTS:
            heights = np.array([by_size[n][name][verdict] for n in sizes])
            panel.bar(places, heights, bottom=bottom, color=COLORS[verdict], label=verdict)
            bottom += heights
        whole = compared[name].difference
        if whole.deviation:
            level = LEVEL / len(differences)
            foreseen = [power(n, whole.mean, whole.deviation, level) for n in sizes]
            if (whole.mean > 0) != larger_is_better(results, results["metrics"][0]):
                foreseen = [1 - one for one in foreseen]
            panel.plot(places, foreseen, "k.--", linewidth=1, label="power of the t test")
        panel.set_xticks(places, [str(n) for n in sizes])
        panel.set(xlabel="seeds", title=f"{name} against {reference(results, name)}", ylim=(0, 1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    figure.axes[0].set_ylabel("parts of so many seeds")
    figure.axes[-1].legend(fontsize=8, loc="lower right")
    path = directory / FIGURE_FILE
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    return path
