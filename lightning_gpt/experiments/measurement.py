"""Experiments that measure what exists instead of training: a function makes the numbers of a cell.

The file names it, and settings are its keyword arguments:

    question: What does int8 cost?
    measure: lightning_gpt.experiments.measures.weights.measure_weights
    overrides: {model: models/smollm2}
    variants: {float32: {method: none}, int8: {method: int8}}
    seeds: [1, 2, 3]
    metrics: [val/perplexity, weights/megabytes]
    better: {weights/megabytes: smaller}
    smoke: {tokens: 64}

The function is called with every variant's settings and `seed`, each time in a process of its own, and gives
{metric: value}, or rows of them with "step", what the values are drawn over (named by the file's `axis`); the values of
the last row are those that are compared. Everything else is as for trainings.
"""

import importlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.settings import read_yaml
from lightning_gpt.experiments.spec_checks import nearest

OF_TRAINING = ("configs", "prepare", "budget", "validations", "equal", "identical_within")
"""Fields that an experiment with `measure` does not have."""
Measured = Mapping[str, float] | Iterable[Mapping[str, float]]


def measure_function(path: Any) -> Callable[..., Measured]:
    """The function that a file names.

    Raises:
        ValueError: there is none, or it has no `seed`.
    """
    module, _, name = str(path).rpartition(".")
    try:
        home = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"measure={path!r} cannot be imported ({error}): give package.module.function") from None
    function = getattr(home, name, None)
    if not callable(function):
        known = [key for key, value in vars(home).items() if inspect.isfunction(value)]
        raise ValueError(f"measure={path!r}: {module} has no function {name!r}{nearest(name, known)}")
    if "seed" not in inspect.signature(function).parameters:
        raise ValueError(f"measure={path!r} takes no seed: add the parameter `seed`")
    return function


def check_without_training(content: Mapping[str, Any]) -> None:
    """Refuses fields that only trainings have."""
    for key in OF_TRAINING:
        if key in content:
            raise ValueError(f"{key} is of trainings, and `measure` trains nothing: leave it out")


def checked_arguments(function: Callable[..., Measured], where: str, value: Any) -> dict[str, Any]:
    """Settings that the function takes.

    Args:
        function: of measure_function.
        where: the field of the file, for errors.
        value: argument -> value; None: no settings.
    """
    if not isinstance(value or {}, dict):
        raise ValueError(f"{where} must be settings (key: value), not {value!r}")
    names = [name for name in inspect.signature(function).parameters if name != "seed"]
    for key in value or {}:
        if key == "seed":
            raise ValueError(f"{where}: seed cannot be set here: give `seeds`")
        if key not in names:
            raise ValueError(f"{where}: {function.__name__} has no setting {key!r}{nearest(key, names)}")
    return dict(value or {})


def check_complete(function: Callable[..., Measured], where: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that lack an argument without default."""
    for name, one in inspect.signature(function).parameters.items():
        if one.default is one.empty and name not in (*settings, "seed"):
            raise ValueError(f"{where}: {function.__name__} needs the setting {name!r}: give it here or in `overrides`")


def run_measurement(config: Path) -> list[dict[str, float]]:
    """Makes and keeps the numbers of one cell.

    Args:
        config: config.yaml of its directory, with `measure`, `settings` and `seed`; the numbers go to
            version_0/metrics.jsonl beside it, as those of a training.

    Raises:
        ValueError: a value that is no finite number, or rows without "step".
    """
    content = read_yaml(config)
    found = measure_function(content["measure"])(**content["settings"], seed=content["seed"])
    rows = [{"step": 1, **found}] if isinstance(found, Mapping) else [dict(row) for row in found]
    for row in rows:
        if "step" not in row:
            raise ValueError(f"{content['measure']} gave a row without step: {row}")
        for name, value in row.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{content['measure']}: {name} is {value!r}, which is no finite number")
    path = config.parent / "version_0" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
    return rows
