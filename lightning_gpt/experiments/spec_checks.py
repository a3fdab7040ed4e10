"""Checks of the fields of an experiment file; each error names the field, the value and the mend."""

import difflib
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_gpt.nn import GPTConfig

EQUAL = ("parameters", "training_flops", "tokens", "seconds")
BUDGETS = ("max_steps", "tokens", "training_flops", "bytes", "seconds")
GROUPS = ("trainer", "model", "data", "samples", "best", "last", "curve", "progress", "diagnosis")
"""Where overrides may reach: the groups of `lightning-gpt fit`."""
RESERVED = {
    "run": "an experiment chooses its own run directories",
    "seed_everything": "give `seeds`",
    "ckpt_path": "an experiment resumes its own cells",
    "trainer.max_steps": "give `budget`",
    "trainer.val_check_interval": "give `validations`",
}
CONFIG_KEY = "model.init_args.config."
PREPARE_KEY = "prepare."
BUDGET_KEY = "budget."
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def checked_list(value: Any, name: str) -> list[Any]:
    """A list with at least one element."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}={value!r} must be a list with at least one element")
    return value


def checked_configs(value: Any) -> list[Path]:
    """Configuration files that exist."""
    paths = [Path(str(one)) for one in checked_list(value, "configs")]
    for one in paths:
        if not one.is_file():
            raise ValueError(f"configs: {one} does not exist (paths start at the working directory {Path.cwd()})")
    return paths


def checked_settings(where: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of fit and those of prepare among dotted settings.

    Args:
        where: the field of the file, for errors.
        value: dotted setting -> value; None: no settings.
    """
    if not isinstance(value or {}, dict):
        raise ValueError(f"{where} must be dotted settings (key: value), not {value!r}")
    fit: dict[str, Any] = {}
    prepare: dict[str, Any] = {}
    for key, setting in (value or {}).items():
        key = str(key)
        for reserved, instead in RESERVED.items():
            if key == reserved or key.startswith(reserved + "."):
                raise ValueError(f"{where}: {key} cannot be set here: {instead}")
        if key.startswith(PREPARE_KEY):
            prepare[key.removeprefix(PREPARE_KEY)] = setting
            continue
        if key.partition(".")[0] not in GROUPS:
            raise ValueError(
                f"{where}: unknown setting {key!r}{nearest(key, GROUPS)}: it must begin with one of "
                f"{', '.join(GROUPS)} or prepare"
            )
        config_field = key.removeprefix(CONFIG_KEY)
        names = [one.name for one in fields(GPTConfig)]
        if config_field != key and config_field.partition(".")[0] not in names:
            raise ValueError(f"{where}: model.config has no field {config_field!r}{nearest(config_field, names)}")
        fit[key] = setting
    check_prepare(where, prepare)
    return fit, prepare


def check_prepare(where: str, settings: dict[str, Any]) -> None:
    """Refuses what `lightning-gpt prepare` does not have."""
    from lightning_gpt.data.prepare import prepare

    names = [name for name in inspect.signature(prepare).parameters if name not in ("out", "overwrite", "quiet")]
    for name in settings:
        if name not in names:
            raise ValueError(f"{where}: prepare has no setting {name!r}{nearest(name, names)}")


def checked_budget(value: Any, where: str = "budget") -> dict[str, float]:
    """One kind of budget with its amount."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(
            f"{where}={value!r} must be one of {', '.join(BUDGETS)} with its amount, as {{max_steps: 400}}"
        )
    ((kind, amount),) = value.items()
    if kind not in BUDGETS:
        raise ValueError(f"{where}: unknown kind {kind!r}{nearest(kind, BUDGETS)}: use {', '.join(BUDGETS)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount > 0:
        raise ValueError(f"{where}.{kind}={amount!r} must be a positive number")
    return {kind: amount}


def checked_equal(value: Any) -> dict[str, float]:
    """What must be equal, and within which share."""
    if not isinstance(value, dict):
        raise ValueError(f"equal={value!r} must map {' or '.join(EQUAL)} to a share, as {{parameters: 0.01}}")
    for kind, share in value.items():
        if kind not in EQUAL:
            raise ValueError(f"equal: unknown kind {kind!r}{nearest(kind, EQUAL)}: use {', '.join(EQUAL)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"equal.{kind}={share!r} must be a share, at least 0 and below 1")
    return value


def checked_seeds(value: Any, where: str = "seeds") -> list[int]:
    """Whole numbers, none twice."""
    seeds = checked_list(value, where)
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"{where}={seeds!r} must be whole numbers of at least 0")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{where}={seeds!r} names one twice: it would be the same run again")
    return seeds


def checked_needs(value: Any) -> dict[str, str]:
    """Path -> the command that makes it."""
    if not isinstance(value, dict) or not all(isinstance(one, str) and one for pair in value.items() for one in pair):
        raise ValueError(f"needs={value!r} must map paths to the commands that make them")
    return {path: " ".join(command.split()) for path, command in value.items()}


def check_name(name: str, of: str) -> None:
    """Refuses a name that cannot be a directory."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{of} {name!r} must be letters, digits and any of ._+- (it names a directory)")


def nearest(name: Any, known: Iterable[str]) -> str:
    """ " (did you mean 'lr'?)", or nothing."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
