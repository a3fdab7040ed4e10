"""From a budget to a number of optimizer steps, and in words."""

import math

from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.experiments.spec import Experiment, Variant


def count_steps(
    experiment: Experiment,
    variant: Variant,
    tokens_per_step: int | None,
    flops_per_token: float | None,
    meta: CorpusMeta | None,
) -> int:
    """Optimizer steps that the budget pays for, a multiple of the number of validations.

    Args:
        experiment: the checked file.
        variant: one of it, whose budget is not in seconds.
        tokens_per_step: None: the number of devices is not fixed.
        flops_per_token: forward and backward; None: not known.
        meta: of the corpus; None: the data are none.

    Raises:
        ValueError: a budget that cannot be counted or divided; one line.
    """
    ((kind, amount),) = (variant.budget or experiment.budget).items()
    times = experiment.validations
    if kind == "max_steps":
        if amount % times:
            raise ValueError(
                f"{experiment.path}: budget.max_steps={amount} is no multiple of validations={times}: the last "
                f"validation must be at the last step, use {max(1, round(amount / times)) * times}"
            )
        return int(amount)
    if meta is None:
        raise ValueError(
            f"{experiment.path}: budget.{kind} counts tokens of a corpus, and {variant.name} learns from data that are "
            "none: use max_steps or seconds"
        )
    if tokens_per_step is None:
        raise ValueError(f"{experiment.path}: budget.{kind} needs trainer.devices as a number, to count tokens by")
    if kind == "training_flops" and flops_per_token is None:
        raise ValueError(f"{experiment.path}: budget.training_flops needs model.init_args.config in the configs")
    per_token = {
        "tokens": 1.0,
        "training_flops": flops_per_token,
        "bytes": meta.split("train").bytes_per_token,
    }[kind]
    exact = amount / (per_token * tokens_per_step)
    steps = round(exact / times) * times
    if exact < 1:
        raise ValueError(
            f"{experiment.path}: budget.{kind}={amount:g} is too small for one step of {variant.name}: a step takes "
            f"{per_token * tokens_per_step:,.4g}"
        )
    if steps == 0 or abs(steps / exact - 1) > 0.02:
        raise ValueError(
            f"{experiment.path}: budget.{kind}={amount:g} pays for {exact:.1f} steps of {variant.name}, which {times} "
            "validations cannot divide within 2%: raise the budget or lower `validations`"
        )
    return steps


def budget_in_words(experiment: Experiment) -> str:
    """For reports: what every run was given."""
    budgets = [variant.budget or experiment.budget for variant in experiment.variants.values()]
    words = dict.fromkeys(_in_words(*next(iter(budget.items()))) for budget in budgets)
    return next(iter(words)) if len(words) == 1 else f"a budget of its own ({', '.join(words)})"


def _in_words(kind: str, amount: float) -> str:
    if kind == "max_steps":
        return f"{amount:,.0f} optimizer steps"
    if kind == "seconds":
        return f"{amount:g} s of training (without start and validations)"
    if kind == "training_flops":
        exponent = math.floor(math.log10(amount))
        return f"{amount / 10**exponent:.3g}e{exponent} training FLOPs (analytic, head included)"
    return f"{amount:,.0f} {'tokens' if kind == 'tokens' else 'bytes of text'}"
