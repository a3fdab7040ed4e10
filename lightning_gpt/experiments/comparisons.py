"""Which runs of an experiment are compared with which, and what the statistics say of them."""

from dataclasses import asdict
from typing import Any

from lightning_gpt.experiments.metrics import larger_is_better, unit_of
from lightning_gpt.experiments.statistics import Comparison, compare, power_statement


def variant_values(results: dict[str, Any], variant: str, metric: str) -> dict[int, float]:
    """seed -> final value of the runs that came to their end."""
    return {
        cell["seed"]: cell["final"][metric]
        for cell in results["cells"]
        if cell["variant"] == variant and metric in cell["final"]
    }


def is_ladder(results: dict[str, Any]) -> bool:
    """Whether each variant is compared with the one before it."""
    return results.get("against") == "previous"


def reference(results: dict[str, Any], variant: str) -> str:
    """What a variant is compared with: the first, or in a ladder the one before it."""
    names = list(results["variants"])
    return names[max(0, names.index(variant) - 1)] if is_ladder(results) else names[0]


def comparisons_of(results: dict[str, Any], metric: str) -> dict[str, Comparison]:
    """variant -> it against its reference, over the seeds that both finished; Holm's correction over all of them.

    Args:
        results: content of results.json.
        metric: one of its metrics.
    """
    if results.get("against") == "none":
        return {}
    differences = {}
    for variant in list(results["variants"])[1:]:
        ours, theirs = (variant_values(results, name, metric) for name in (variant, reference(results, variant)))
        if both := sorted(ours.keys() & theirs.keys()):
            differences[variant] = [ours[seed] - theirs[seed] for seed in both]
    return compare(differences, larger_is_better(results, metric))


def power_of(results: dict[str, Any], metric: str) -> str:
    """What this experiment could have seen, in a sentence; empty when nothing is compared."""
    return power_statement(list(comparisons_of(results, metric).values()), unit_of(metric, results))


def comparisons_json(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """metric -> variant -> the numbers of its comparison, for results.json."""
    return {
        metric: {
            variant: {"reference": reference(results, variant), **asdict(one), "verdict": one.verdict}
            for variant, one in comparisons_of(results, metric).items()
        }
        for metric in results["metrics"]
    }
