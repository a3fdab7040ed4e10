"""Exercises of 04, experiments."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.curves import SICKNESSES, curve_files
from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number
from lightning_gpt.learning.runs import Study, content, findings, healthy, opened, own_study


def check_range(answer: dict) -> None:
    """A range test with rotary positions."""
    found = content(answer, "range", "lr_range.json")
    if "rotary" not in found.get("command", ""):
        raise Wrong("this range test was not run with --model.config.position rotary")
    number("predicted_steepest", answer.get("predicted_steepest"))
    close("steepest", answer.get("steepest"), found["steepest"], 0.02)


def check_mended(answer: dict) -> None:
    """Sick runs and their mended twins."""
    for sick in ("too_high", "small_batch", "by_heart"):
        if not findings(opened(answer, sick, finished=False)):
            raise Wrong(f"{sick}: diagnose calls this run healthy: make it sick first")
        healthy(opened(answer, f"{sick}_mended"))


def check_pairs(answer: dict) -> None:
    """Eight seeds, and how many pairs the difference needs."""
    from lightning_gpt.experiments.statistics import estimate, pairs_needed

    study = Study(answer)
    study.needs(2, 8)
    variant = answer.get("variant")
    if variant not in study.values:
        raise Wrong(f"variant: {variant!r} is none of {', '.join(study.values)}")
    reference = next(iter(study.content["variants"]))
    if variant == reference:
        raise Wrong(f"variant: {variant} is the reference")
    found = estimate(study.differences(variant, reference))
    close("deviation", answer.get("deviation"), found.deviation, 0.02)
    needed = pairs_needed(abs(found.mean), found.deviation)
    if needed is None:
        raise Wrong("the difference is so small that no number of pairs up to 10,000 sees it: choose another variant")
    close("pairs_needed", answer.get("pairs_needed"), needed, 0.15, 1.0)


PAIRED_STUB = '''
def compare(reference, variants):
    """Every variant against a reference, seed by seed.

    Args:
        reference: losses, one a seed.
        variants: {name: losses of the same seeds in the same order}.

    Returns:
        {name: (mean difference, low, high, p, corrected p)}: differences are the variant's minus the reference's,
        low and high end the 95% Student interval of their mean, p is of the two-sided paired t test, and corrected p
        is Holm's (1979) over all variants.
    """
    raise NotImplementedError


if __name__ == "__main__":
    print(compare([1.0, 1.1, 0.9], {"wide": [0.9, 1.05, 0.8], "deep": [1.0, 1.2, 0.9]}))
'''


def solve_paired(reference: list[float], variants: dict[str, list[float]]) -> dict[str, tuple]:
    """experiments/statistics.py."""
    from lightning_gpt.experiments.statistics import compare

    differences = {name: [a - b for a, b in zip(losses, reference)] for name, losses in variants.items()}
    found = {}
    for name, one in compare(differences).items():
        mean, reach = one.difference.mean, one.difference.half_width
        found[name] = (mean, mean - reach, mean + reach, one.p, one.p_holm)
    return found


def check_paired(answer: Any) -> None:
    """Two to eight seeds, one to four variants; and how often nothing is found to be something."""
    import random

    mine, draw = function(answer, "compare"), random.Random(0)
    parts = ("mean difference", "low", "high", "p", "corrected p")
    for seeds, count in ((2, 1), (3, 2), (5, 4), (8, 3)):
        reference = [2 + draw.gauss(0, 0.1) for _ in range(seeds)]
        variants = {
            f"v{place}": [one + 0.02 * place + draw.gauss(0, 0.02) for one in reference] for place in range(count)
        }
        given, wanted = mine(reference, variants), solve_paired(reference, variants)
        if not isinstance(given, dict) or given.keys() != wanted.keys():
            raise Wrong(f"compare: a dict with the keys {', '.join(wanted)} is wanted")
        for name in wanted:
            if not isinstance(given[name], tuple | list) or len(given[name]) != 5:
                raise Wrong(f"compare: {name} has to have five numbers")
            for part, a, b in zip(parts, given[name], wanted[name]):
                close(f"{part} of {name}, {seeds} seeds, {count} variants", a, b, 1e-7, 1e-9)
    false = sum(
        mine([draw.gauss(0, 1) for _ in range(5)], {"same": [draw.gauss(0, 1) for _ in range(5)]})["same"][4] < 0.05
        for _ in range(300)
    )
    if false > 30:
        raise Wrong(f"{false} of 300 experiments without a difference got a verdict; one in twenty is allowed")


def check_curves(answer: dict) -> None:
    """Names of sicknesses."""
    for name, kind in SICKNESSES.items():
        given = answer.get(name)
        if given is None:
            raise Wrong(f"{name}: not filled in yet")
        equal(name, str(given).strip(), kind)


POWER_STUB = """
visible_at_5:   # the smallest true difference that 5 pairs find in 4 of 5 experiments
pairs:          # how many see a difference of 0.005 in 4 of 5
"""


def check_power(answer: dict) -> None:
    """What a number of seeds can see."""
    from lightning_gpt.experiments.statistics import pairs_needed, visible_difference

    close("visible_at_5", answer.get("visible_at_5"), visible_difference(5, 0.01), 0.03)
    close("pairs", answer.get("pairs"), pairs_needed(0.005, 0.01), 0, 1.0)


EXERCISES = (
    Exercise(
        1,
        "Does the steepest rate move",
        "run",
        "Say beforehand at which rate the loss falls most steeply with rotary positions, then run the range test.",
        "predicted_steepest:   # your guess, written before the run\nrange:                # folder with "
        "lr_range.json\n"
        "steepest:             # what it found",
        check_range,
        (
            "lightning-gpt experiment lr_range -c ... -c ... --model.config.position rotary --out runs/lr_rotary",
            "Without rotary positions it was 5e-4 here.",
        ),
        "range",
    ),
    Exercise(
        1,
        "Make it sick, then mend it",
        "run",
        "Provoke the three sick runs of the page, and mend each with the setting that `lightning-gpt diagnose` names.",
        "\n".join(f"{name}:   # run\n{name}_mended:   # run" for name in ("too_high", "small_batch", "by_heart")),
        check_mended,
        (
            "The advice stands behind the arrow, and names a setting and often a value.",
            "What is learnt by heart wants more text, or an earlier end.",
        ),
        "mend",
    ),
    Exercise(
        2,
        "How many pairs",
        "run",
        "A copy of experiments/04_experiments/seeds.yaml with eight seeds. Of one variant's differences to the "
        "reference: their standard deviation, and how many pairs would find their mean in 4 of 5 experiments.",
        "experiment:     # folder with results.json\nvariant:\ndeviation:\npairs_needed:",
        check_pairs,
        (
            "The deviation has n - 1 below; report.md has it too.",
            "lightning_gpt.experiments.statistics.pairs_needed(difference, deviation).",
        ),
        "pairs",
    ),
    Exercise(
        2,
        "An experiment of your own",
        "run",
        "One change, equal parameters, five seeds, an expectation written before the run. Any verdict passes.",
        "experiment:   # folder with results.json",
        own_study,
        (
            "experiments/05_architecture/heads.yaml is short enough to copy.",
            "equal: {parameters: 0.01} holds parameters within 1%.",
        ),
        "own",
    ),
    Exercise(
        3,
        "The paired comparison",
        "component",
        "Seeds differ by more than variants do; seed by seed that cancels. Write the comparison that all reports here "
        "make. scipy is allowed, and must agree to 1e-7.",
        PAIRED_STUB,
        check_paired,
        (
            "The interval reaches t(0.975, n - 1) s / sqrt(n) to both sides, s with n - 1 below.",
            "scipy.stats.t.ppf and ttest_1samp of the differences do the rest.",
            "Holm: sorted from the smallest, p times m, then m - 1, ...; never falling, never above 1.",
        ),
        "paired",
        lambda: {"compare": solve_paired},
    ),
    Exercise(
        2,
        "Five curves, four sicknesses",
        "measure",
        "Look at the losses in curves/a to curves/e and name each: overfitting, rate_too_high, rate_too_low, "
        "oscillating_loss or healthy. Decide before you ask `lightning-gpt diagnose`.",
        "a:\nb:\nc:\nd:\ne:",
        check_curves,
        (
            "lightning-gpt compare curves/a curves/b ... draws them; or plot train/loss and val/loss yourself.",
            "A loss that does not move and one that rises have opposite causes: look at optim/lr as well.",
        ),
        "curves",
        lambda: "".join(f"{name}: {kind}\n" for name, kind in SICKNESSES.items()),
        curve_files,
    ),
    Exercise(
        2,
        "What five seeds can see",
        "measure",
        "Paired differences have a standard deviation of 0.01. Which true difference do five pairs find in 4 of 5 "
        "experiments, and how many pairs find 0.005?",
        POWER_STUB,
        check_power,
        (
            "lightning_gpt/experiments/statistics.py has both as functions.",
            "Half the difference needs more than four times the pairs beyond the first few.",
        ),
        "power",
        lambda: "visible_at_5: 0.01685\npairs: 34\n",
    ),
)
