"""Exercises of 06, scaling laws."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number
from lightning_gpt.learning.runs import Study, content, last, opened

BUDGET = 8 * 312e12 * 0.4 * 3 * 86400


def check_budget(answer: dict) -> None:
    """Three days of eight A100."""
    size = (BUDGET / 120) ** 0.5
    close("flops", answer.get("flops"), BUDGET, 0.01)
    close("parameters", answer.get("parameters"), size, 0.1)
    close("tokens", answer.get("tokens"), 20 * size, 0.1)


def check_laws(answer: dict) -> None:
    """Kaplan's size over the default law's."""
    from lightning_gpt.planning.scaling_plan import LAWS

    sizes = {name: LAWS[name].optimum(1e21)[0] for name in ("kaplan", "besiroglu")}
    close("factor", answer.get("factor"), sizes["kaplan"] / sizes["besiroglu"], 0.1)
    equal("serve", answer.get("serve"), "default")


def check_held_out(answer: dict) -> None:
    """Predictions of a size that was left out."""
    found = content(answer, "fit", "fit.json")
    predictions = [one for one in found.get("predictions", []) if one.get("measured") is not None]
    if not predictions or "hold_out" not in found.get("command", ""):
        raise Wrong("this fit held no runs out: --hold_out 'd6w192-*'")
    others = [one["name"] for one in predictions if not one["name"].startswith("d6w192-")]
    if others:
        raise Wrong(f"this fit held {others[0]} out, asked for is the size of 3.05 M: --hold_out 'd6w192-*'")
    inside = sum(one["low"] <= one["measured"] <= one["high"] for one in predictions)
    close("inside", answer.get("inside"), inside, 0, 0.1)
    errors = [one["loss"] - one["measured"] for one in predictions]
    equal("predicted_losses_are", answer.get("predicted_losses_are"), "too low" if sum(errors) < 0 else "too high")


def check_grid(answer: dict) -> str:
    """Nine runs and a tenth that was predicted."""
    study = Study(answer)
    study.needs(9, 1)
    tenth = last(opened(answer, "tenth"), "val/loss")
    said = number("predicted", answer.get("predicted"))
    if abs(said / tenth - 1) > 0.05:
        raise Wrong(f"predicted: {said:.4g} is {abs(said / tenth - 1):.1%} away from the tenth run (allowed: 5%)")
    return f"{said / tenth - 1:+.2%} from the tenth run's loss"


FIT_STUB = '''
def fit(parameters, tokens, losses):
    """The constants of L(N, D) = E + A / N^alpha + B / D^beta that fit runs best.

    Args:
        parameters, tokens, losses: lists of as many numbers as there are runs. One of the losses may be far off.

    Returns:
        E, A, B, alpha, beta.
    """
    raise NotImplementedError


if __name__ == "__main__":
    sizes, counts = [1e6, 4e6, 1.6e7, 6.4e7] * 4, [n for n in (2e7, 1e8, 5e8, 2e9) for _ in range(4)]
    losses = [1.7 + 400 / n**0.34 + 1800 / d**0.36 for n, d in zip(sizes, counts)]
    print(fit(sizes, counts, losses), "wanted 1.7, 400, 1800, 0.34, 0.36")
'''


def solve_fit(parameters: list[float], tokens: list[float], losses: list[float]) -> tuple[float, ...]:
    """planning/fitting.py."""
    from lightning_gpt.planning.fitting import Data, fit_theta, law_of

    law = law_of(fit_theta(Data.of(parameters, tokens, losses))[0])
    return law.E, law.A, law.B, law.alpha, law.beta


def check_fit(answer: Any) -> None:
    """Known constants; the same with one run that went wrong."""
    fit = function(answer, "fit")
    sizes = [n for n in (1e6, 3e6, 1e7, 3e7, 1e8) for _ in range(6)]
    counts = [2e7, 6e7, 2e8, 6e8, 2e9, 6e9] * 5
    for constants in ((1.7, 400.0, 1800.0, 0.34, 0.36), (1.2, 60.0, 900.0, 0.25, 0.32)):

        def loss(n: float, d: float, law: tuple[float, ...] = constants) -> float:
            return law[0] + law[1] / n ** law[3] + law[2] / d ** law[4]

        for outlier in (False, True):
            losses = [loss(n, d) for n, d in zip(sizes, counts)]
            if outlier:
                losses[13] *= 1.3
            found = fit(list(sizes), list(counts), losses)
            if not isinstance(found, tuple | list) or len(found) != 5:
                raise Wrong("fit: five numbers are wanted, E, A, B, alpha, beta")
            law = tuple(number(name, one) for name, one in zip(("E", "A", "B", "alpha", "beta"), found))
            for n, d in ((6e7, 4e9), (5e6, 1e9), (2e7, 1e8)):
                off = abs(loss(n, d, law) / loss(n, d) - 1)
                if off > 1e-3:
                    where = "with one outlier among thirty runs" if outlier else "without noise"
                    raise Wrong(f"{where} the loss at N={n:g}, D={d:g} is foretold {off:.2%} off (allowed: 0.1%)")


OPTIMUM_STUB = '''
def optimum(flops, E, A, B, alpha, beta):
    """The N and D of the least loss E + A / N^alpha + B / D^beta with 6 N D = flops.

    Returns:
        N, D.
    """
    raise NotImplementedError


if __name__ == "__main__":
    N, D = optimum(1e21, 1.8172, 482.01, 2085.43, 0.3478, 0.3658)
    print(f"{N:.3g} parameters, {D:.3g} tokens, {D / N:.3g} a parameter, {6 * N * D:.3g} FLOPs")
'''


def solve_optimum(flops: float, E: float, A: float, B: float, alpha: float, beta: float) -> tuple[float, float]:
    """planning/laws.py."""
    from lightning_gpt.planning.laws import ParametricLaw

    return ParametricLaw("given", E, A, B, alpha, beta).optimum(flops)


def check_optimum(answer: Any) -> None:
    """Besiroglu's constants and others."""
    mine = function(answer, "optimum")
    for law in ((1.8172, 482.01, 2085.43, 0.3478, 0.3658), (1.7, 400.0, 400.0, 0.3, 0.3)):
        for flops in (1e18, 1e21, 5.76e23):
            found = mine(flops, *law)
            if not isinstance(found, tuple | list) or len(found) != 2:
                raise Wrong("optimum: two numbers are wanted, N and D")
            for name, a, b in zip("ND", found, solve_optimum(flops, *law)):
                close(f"{name} for {flops:g} FLOPs", a, b, 0.01)


LINE_STUB = '''
def power_law(x, y):
    """y = factor * x^exponent through points with noise, by least squares of the logarithms.

    Returns:
        factor, exponent.
    """
    raise NotImplementedError


if __name__ == "__main__":
    print(power_law([1, 10, 100], [5, 2.5, 1.25]), "wanted 5 and -0.301")
'''


def solve_line(x: list[float], y: list[float]) -> tuple[float, float]:
    """planning/power_laws.py, whose law is (scale / x)^exponent."""
    from lightning_gpt.planning.power_laws import fit_power_law

    law = fit_power_law(x, y)
    return law.scale**law.exponent, -law.exponent


def check_line(answer: Any) -> None:
    """With and without noise."""
    import random

    mine, draw = function(answer, "power_law"), random.Random(0)
    for factor, exponent, noise in ((5.0, -0.3, 0.0), (400.0, -0.08, 0.02), (0.6, 0.5, 0.05)):
        x = [10.0**power for power in range(5, 12)]
        y = [factor * one**exponent * 2.718281828 ** draw.gauss(0, noise) for one in x]
        found = mine(x, y)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("power_law: two numbers are wanted, factor and exponent")
        for name, a, b in zip(("factor", "exponent"), found, solve_line(x, y)):
            close(f"{name}, noise {noise:g}", a, b, 1e-6)


EXERCISES = (
    Exercise(
        1,
        "Three days of eight GPUs",
        "measure",
        "Eight A100 (312e12 FLOP/s) at 40% for three days: how many FLOPs are that, and which N and D does D = 20 N "
        "give?",
        "flops:\nparameters:\ntokens:",
        check_budget,
        ("A day has 86,400 seconds.", "6 N D with D = 20 N is 120 N^2."),
        "budget",
        lambda: "flops: 2.588e+20\nparameters: 1.4685e+9\ntokens: 2.937e+10\n",
    ),
    Exercise(
        1,
        "Kaplan or Chinchilla",
        "measure",
        "Plan 1e21 FLOPs with --law kaplan and with the default. By which factor is Kaplan's network larger, and which "
        "of the two would you rather serve (kaplan or default)?",
        "factor:\nserve:",
        check_laws,
        (
            "lightning-gpt plan scaling --help shows how a budget is given.",
            "What is served pays for its size in every token.",
        ),
        "laws",
        lambda: f"factor: {_factor()}\nserve: default\n",
    ),
    Exercise(
        2,
        "The largest size, foretold",
        "run",
        "`lightning-gpt plan fit` of the grid with --hold_out 'd6w192-*' --out DIR: how many of the runs left out lie "
        "inside their intervals, and are the predicted losses too low or too high on the whole?",
        "fit:                    # folder with fit.json\ninside:                 # how many\npredicted_losses_are:  "
        " # too low or too high",
        check_held_out,
        (
            "fit.md has a table of predictions beside what was measured.",
            "The sum of predicted minus measured has a sign.",
        ),
        "held_out",
    ),
    Exercise(
        2,
        "A grid of your own",
        "run",
        "Three sizes times three token counts, each schedule ending with its run. Predict a tenth run's val/loss "
        "before "
        "you train it: within 5%.",
        "experiment:   # folder with results.json of nine variants\npredicted:    # val/loss\ntenth:        # run",
        check_grid,
        ("experiments/06_scaling/grid.yaml shows how such a grid is written.", "plan fit DIR --predict N,D."),
        "grid",
    ),
    Exercise(
        3,
        "Fit the law",
        "component",
        "From N, D and L of thirty runs to five constants, as good with one run that went wrong.",
        FIT_STUB,
        check_fit,
        (
            "Fit log L by log-sum-exp of (log A - alpha log N, log B - beta log D, log E): all in logarithms.",
            "A Huber loss with a small delta (1e-3) does not follow an outlier.",
            "scipy.optimize.minimize(method='BFGS') from several starts (alpha, beta in 0 to 1); keep the best.",
        ),
        "fit",
        lambda: {"fit": solve_fit},
        seconds=180.0,
    ),
    Exercise(
        2,
        "The best split of a budget",
        "component",
        "Where does the law have its minimum when 6 N D is given?",
        OPTIMUM_STUB,
        check_optimum,
        (
            "Put D = C / (6 N) into the loss and set the derivative by N to 0.",
            "N = (alpha A / (beta B))^(1 / (alpha + beta)) (C / 6)^(beta / (alpha + beta)).",
        ),
        "optimum",
        lambda: {"optimum": solve_optimum},
    ),
    Exercise(
        2,
        "A line in logarithms",
        "component",
        "A power law is a straight line once both sides are logarithms.",
        LINE_STUB,
        check_line,
        ("log y = log factor + exponent log x.", "numpy.polyfit(log x, log y, 1) gives slope and intercept."),
        "power_law",
        lambda: {"power_law": solve_line},
    ),
)


def _factor() -> float:
    from lightning_gpt.planning.scaling_plan import LAWS

    return LAWS["kaplan"].optimum(1e21)[0] / LAWS["besiroglu"].optimum(1e21)[0]
