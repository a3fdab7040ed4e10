"""What a hyper-parameter search is: the content of its YAML file, checked before anything runs.

    question, expectation, notes, configs, prepare, budget, overrides, validations, smoke, needs   as in an experiment
    space:                                 dotted setting -> what it may be
      model.init_args.optimizer.init_args.lr: {low: 3e-4, high: 3e-2, log: true}
      model.init_args.schedule.init_args.warmup_steps: {low: 0, high: 60, step: 10}      int: true for whole numbers
      model.init_args.optimizer.init_args.betas: {choices: [[0.9, 0.95], [0.9, 0.99]]}
    trials: 24                             in all; raised later, the search goes on
    seeds: [1]                             of every trial; its value is the mean over them
    metric: val/loss                       smaller is better
    start: [default]                       tried first: settings of the space, or `default`, as the configs have them
    sampler: tpe                           or random, grid, qmc, cmaes, gp; {kind: tpe, seed: 0, n_startup_trials: 8}
    pruner: asha                           or median, percentile, hyperband, none; {kind: asha, reduction_factor: 3}
    confirm: {seeds: [11, 12, 13]}         optional: best against start[0] with fresh seeds, since the best of many
                                           trials owes part of its lead to luck

Intermediate values are those of the first seed's validations; they decide whether a trial is stopped early. Options of
sampler and pruner are those of Optuna's class; where it says steps or resource, a validation is meant.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.metrics import LARGER
from lightning_gpt.experiments.search_space import Choices, Range, checked_space
from lightning_gpt.experiments.settings import lookup, nested, overlaid, read_yaml
from lightning_gpt.experiments.spec import Experiment, Variant, checked_experiment
from lightning_gpt.experiments.spec_checks import checked_seeds, checked_settings, nearest

SHARED = (
    "question",
    "expectation",
    "notes",
    "configs",
    "prepare",
    "budget",
    "overrides",
    "validations",
    "smoke",
    "seeds",
    "needs",
)
OWN = ("space", "trials", "metric", "start", "sampler", "pruner", "confirm")
SAMPLERS = ("tpe", "random", "grid", "qmc", "cmaes", "gp")
PRUNERS = ("asha", "median", "percentile", "hyperband", "none")


@dataclass(frozen=True)
class Search:
    """A checked search file."""

    base: Experiment
    """All that every trial shares: an experiment with one variant that changes nothing."""
    space: dict[str, Range | Choices]
    trials: int
    """In all."""
    start: list[dict[str, Any]] = field(default_factory=list)
    """Settings of the trials that come first; what they leave out is drawn."""
    sampler: dict[str, Any] = field(default_factory=lambda: {"kind": "tpe"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"kind": "asha"})
    confirm: list[int] = field(default_factory=list)
    """Seeds of the confirmation; empty: there is none."""

    @property
    def metric(self) -> str:
        """Smaller is better."""
        return self.base.metrics[0]

    def variant(self, name: str, settings: dict[str, Any]) -> Variant:
        """Settings of the space as a variant of the base."""
        fit, prepare = checked_settings(name, settings)
        return Variant(name, fit, prepare, seeds=tuple(self.base.seeds))

    def experiment(self, name: str, settings: dict[str, Any]) -> Experiment:
        """One trial as an experiment of one variant."""
        return replace(self.base, variants={name: self.variant(name, settings)})


def base_settings(base: Experiment) -> dict[str, Any]:
    """Configs and overrides laid over each other, nested."""
    tree: dict[str, Any] = {}
    for path in base.configs:
        tree = overlaid(tree, read_yaml(path))
    return overlaid(tree, nested(base.overrides))


def load_search(path: str | Path) -> Search:
    """Reads and checks a search's YAML.

    Raises:
        ValueError: one line that names the file, the field and the mend.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        return _checked(path, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(path: Path, content: dict[str, Any]) -> Search:
    for key in content:
        if key not in (*SHARED, *OWN):
            raise ValueError(f"unknown field {key!r}{nearest(key, (*SHARED, *OWN))}")
    for key in ("question", "configs", "budget", "space", "trials", "seeds"):
        if key not in content:
            raise ValueError(f"the field {key!r} is missing")
    space = checked_space(content["space"])
    checked_settings("space", {key: dimension.examples()[0] for key, dimension in space.items()})
    shared = {key: content[key] for key in SHARED if key in content}
    metric = content.get("metric", "val/loss")
    if not str(metric).startswith("val/"):
        raise ValueError(f"metric={metric!r} must be one of validation, such as val/loss")
    base = checked_experiment(path, {**shared, "metrics": [metric], "variants": {"trial": {}}, "against": "none"})
    if base.better[metric] == LARGER:
        raise ValueError(f"metric={metric}: larger is better, and a search looks for the smallest: use val/loss")
    if base.knows_seconds:
        raise ValueError(
            "budget.seconds would measure each trial's step anew, and compare trials of unequal lengths by its noise: "
            "give max_steps, tokens or training_flops"
        )
    trials = content["trials"]
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ValueError(f"trials={trials!r} must be a whole number of at least 1")
    sampler = _kind("sampler", content.get("sampler", "tpe"), SAMPLERS)
    if sampler["kind"] == "grid":
        trials = min(trials, _grid_size(space))
    search = Search(
        base=base,
        space=space,
        trials=trials,
        start=_start(content.get("start") or [], base, space),
        sampler=sampler,
        pruner=_kind("pruner", content.get("pruner", "asha"), PRUNERS),
        confirm=_confirm(content.get("confirm")),
    )
    if len(search.start) > trials:
        raise ValueError(f"start has {len(search.start)} trials, more than trials={trials}")
    if search.confirm and not search.start:
        raise ValueError("confirm compares the best trial with the first of `start`: give `start: [default]`")
    if search.confirm and (missing := [key for key in space if key not in search.start[0]]):
        raise ValueError(f"confirm: the first of `start` must set the whole space, it lacks {', '.join(missing)}")
    if both := sorted(set(search.confirm) & set(base.seeds)):
        raise ValueError(f"confirm.seeds={search.confirm!r}: {both} chose the best trial already: give fresh ones")
    return search


def _kind(where: str, value: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if value is None:
        value = "none"
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ValueError(f"{where}={value!r} must be a name, or {{kind: {known[0]}, ...}}")
    if value["kind"] not in known:
        raise ValueError(f"{where}={value['kind']!r} is unknown{nearest(value['kind'], known)}: use {', '.join(known)}")
    seed = value.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{where}.seed={seed!r} must be a whole number of at least 0")
    return value


def _grid_size(space: dict[str, Range | Choices]) -> int:
    size = 1
    for key, dimension in space.items():
        values = dimension.grid()
        if values is None:
            raise ValueError(f"sampler=grid: space.{key} has no end of values: give it choices or a step")
        size *= len(values)
    return size


def _start(value: Any, base: Experiment, space: dict[str, Range | Choices]) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"start={value!r} must be a list of settings of the space, or of the word default")
    found = []
    for number, one in enumerate(value):
        where = f"start[{number}]"
        settings = _defaults(where, base, space) if one == "default" else one
        if not isinstance(settings, dict):
            raise ValueError(f"{where}={one!r} must be settings of the space (key: value), or default")
        for key, setting in settings.items():
            if key not in space:
                raise ValueError(f"{where}: {key} is not in the space{nearest(key, space)}")
            try:
                space[key].drawn(setting)
            except ValueError as error:
                raise ValueError(f"{where}: {key}: {error}") from None
        found.append(dict(settings))
    return found


def _defaults(where: str, base: Experiment, space: dict[str, Range | Choices]) -> dict[str, Any]:
    """The settings of the space as the configs have them."""
    tree = overlaid(base_settings(base), {"prepare": base.prepare})
    missing = object()
    settings = {key: lookup(tree, key, missing) for key in space}
    for key, setting in settings.items():
        if setting is missing:
            raise ValueError(f"{where}: the configs do not set {key}: write its value instead of default")
    return settings


def _confirm(value: Any) -> list[int]:
    if value is None:
        return []
    if not isinstance(value, dict) or set(value) != {"seeds"}:
        raise ValueError(f"confirm={value!r} must be {{seeds: [11, 12, 13]}}")
    seeds = checked_seeds(value["seeds"], "confirm.seeds")
    if len(seeds) < 2:
        raise ValueError(f"confirm.seeds={seeds!r}: a comparison needs at least two")
    return seeds
