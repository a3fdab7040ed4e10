"""The numbers that runs are compared by: which way is better, and in what they are measured."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gpt.experiments.spec_checks import nearest

SMALLER, LARGER = "smaller", "larger"
KNOWN = {
    "val/loss": SMALLER,
    "val/perplexity": SMALLER,
    "val/bits_per_byte": SMALLER,
    "train/loss": SMALLER,
    "train/perplexity": SMALLER,
    "val/accuracy": LARGER,
    "train/accuracy": LARGER,
    "val/mean_token_accuracy": LARGER,
    "train/mean_token_accuracy": LARGER,
    "val/first_error": LARGER,
    "val/rewards/accuracies": LARGER,
    "val/score": LARGER,
    "objective/scores": LARGER,
    "memory/peak_gib": SMALLER,
    "speed/tokens_per_second": LARGER,
}
"""Metrics of our tasks of which everybody wants less, or more. Others say it in the field `better`."""
FAMILIES = {
    r"val/loss_at_\d+": SMALLER,
    r"experts/(max_violation|dropped)": SMALLER,
    r"experts/min_load": LARGER,
    r"val/(transfer_)?((image_to_text|text_to_image)_)?r\d+": LARGER,
    r"val/(transfer_)?(image_to_text|text_to_image)_median_rank": SMALLER,
    r"val/zero_shot_(class_mean_)?top\d+": LARGER,
}
"""Metrics that come in kinds, or that only some runs have: longer validation windows, a mixture of experts, recalls."""
NAME = re.compile(r"\w+(/[\w@.-]+)+")
LOSS = re.compile(r"(val|train)/loss(_at_\d+)?")
UNITS = {"val/bits_per_byte": " bits per byte", "val/kl": " nats", "objective/kl": " nats", "memory/peak_gib": " GiB"}
TOKEN_UNIT = "nats per token"
LOSS_UNITS = {
    "Pretraining": TOKEN_UNIT,
    "SFT": TOKEN_UNIT,
    "RewardModel": "nats per pair",
    "ProcessRewardModel": "nats per step",
    "CLIP": "nats per pair",
}
"""Of the loss, by the task; those of the others have none that means something."""


def check_metric(name: Any, better: Mapping[str, str]) -> None:
    """Refuses a metric of which nobody knows which way is better.

    Args:
        name: as training logs it.
        better: the field of the experiment.

    Raises:
        ValueError: it names the nearest that is known.
    """
    if name in better or direction_of(name) is not None:
        return
    raise ValueError(
        f"metric {name!r} is unknown{nearest(name, KNOWN)}: use {', '.join(KNOWN)}, or, if training logs it, say "
        f"whether larger or smaller is better, as `better: {{{name}: larger}}`"
    )


def checked_better(value: Any, used: Iterable[Any]) -> dict[str, str]:
    """The field `better`: metric -> larger or smaller.

    Args:
        value: of the file.
        used: the experiment's metrics and its curve.

    Raises:
        ValueError: no mapping, a metric that the experiment does not use, another word.
    """
    if not isinstance(value, dict):
        raise ValueError(f"better={value!r} must map metrics to larger or smaller, as {{val/accuracy: larger}}")
    used = [str(name) for name in used]
    for name, direction in value.items():
        if name not in used:
            raise ValueError(f"better: {name!r} is none of this experiment's metrics{nearest(name, used)}")
        if direction not in (SMALLER, LARGER):
            raise ValueError(f"better.{name}={direction!r} must be {SMALLER} or {LARGER}")
        if not NAME.fullmatch(name):
            raise ValueError(f"better: {name!r} is no name that training logs, such as val/accuracy")
    return value


def direction_of(name: Any) -> str | None:
    """smaller or larger; None: not known."""
    if name in KNOWN:
        return KNOWN[name]
    return next((one for family, one in FAMILIES.items() if re.fullmatch(family, str(name))), None)


def larger_is_better(results: Mapping[str, Any], metric: str) -> bool:
    """As results.json says it; one that does not is older than the field, and smaller was better.

    Args:
        results: content of results.json.
        metric: one of its metrics.
    """
    return results.get("better", {}).get(metric) == LARGER


def unit_of(metric: str, results: Mapping[str, Any] | None = None) -> str:
    """With a space before it; "" where there is none.

    Args:
        metric: name.
        results: content of results.json, which knows in what the loss is measured; None: in nats per token.
    """
    if LOSS.fullmatch(metric):
        unit = (results or {}).get("loss_unit", TOKEN_UNIT)
        return f" {unit}" if unit else ""
    return UNITS.get(metric, "")


def loss_unit(task: str | None, corpus: bool) -> str:
    """Of the loss that a task logs.

    Args:
        task: class_path of the LightningModule.
        corpus: whether it learns from the tokens of a corpus.
    """
    name = str(task or "").rpartition(".")[2]
    return LOSS_UNITS.get(name, TOKEN_UNIT if corpus else "")
