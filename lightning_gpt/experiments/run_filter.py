"""Conditions on runs, `model.config.n_layer=4` or `val/loss<1.6`, and names that need not be spelled out."""

import difflib
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from lightning_gpt.experiments.run_reader import Run
from lightning_gpt.experiments.settings import parse_value

CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")


def resolve(name: str, known: Collection[str], what: str) -> str:
    """The name meant: `name` itself, without `init_args`, or the only one that ends in it.

    Raises:
        ValueError: there is none, or several; shows the nearest.
    """
    plain = name.replace(".init_args", "")
    if plain in known:
        return plain
    ends = [one for one in known if one.endswith((f".{plain}", f"/{plain}"))]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(f"{what} {name!r} may be {' or '.join(sorted(ends))}: give the whole name")
    leaves = {one.rpartition(".")[2]: one for one in known}
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(plain.rpartition(".")[2], leaves, n=1)]
    listed = ", ".join(sorted(known)) if len(known) <= 12 else f"{len(known)} others"
    raise ValueError(
        f"{what} {name!r}: no run has it" + (f", did you mean {near[0]!r}?" if near else f"; there are {listed}")
    )


def keep(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet every condition.

    Raises:
        ValueError: no condition, a name that no run has, or conditions that no run meets.
    """
    settings = {name for run in runs for name in run.settings}
    metrics = {tag for run in runs for tag in run.series}
    kept = list(runs)
    for condition in conditions:
        match = CONDITION.fullmatch(condition)
        if not match:
            raise ValueError(
                f"--filter {condition!r} is no condition: write SETTING=VALUE, or METRIC<VALUE, as in val/loss<1.6"
            )
        name, operator, value = (
            resolve(match[1], settings | metrics | {"status"}, "--filter"),
            match[2],
            parse_value(match[3]),
        )
        if operator not in ("=", "==", "!=") and not isinstance(value, int | float):
            raise ValueError(f"--filter {condition!r}: {operator} needs a number, {match[3]!r} is none")
        kept = [run for run in kept if _meets(_value(run, name), operator, value)]
    if not kept:
        raise ValueError(f"--filter {', '.join(conditions)}: none of {len(runs)} run(s) meets it")
    return kept


def _value(run: Run, name: str) -> Any:
    if name in run.series:
        return run.series[name].last
    return run.status if name == "status" else run.settings.get(name)


def _meets(found: Any, operator: str, value: Any) -> bool:
    if operator in ("=", "==", "!="):
        return _same(found, value) == (operator != "!=")
    if isinstance(found, bool) or not isinstance(found, int | float) or math.isnan(found):
        return False
    return {"<": found < value, ">": found > value, "<=": found <= value, ">=": found >= value}[operator]


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, int | float) and isinstance(value, int | float):
        return isinstance(found, bool) == isinstance(value, bool) and math.isclose(found, value, rel_tol=1e-9)
    return found == value or (isinstance(found, str) and found == json.dumps(value)) or str(found) == str(value)
