"""What an experiment is: the content of its YAML file, checked before anything runs.

    question: Does warm-up matter?
    expectation: ...                       what one should find, written before the run
    configs: [configs/pretrain/x.yaml]     as -c of `lightning-gpt fit`, paths as it takes them
    prepare: {source: shakespeare, tokenizer: char}     optional: the corpus, as `lightning-gpt prepare` takes it
    budget: {max_steps: 400}               or tokens, training_flops, bytes, seconds: the same for every variant
    overrides: {data.init_args.batch_size: 12}          settings common to all, dotted
    variants:                              the first is the baseline
      none: {model.init_args.schedule.init_args.warmup_steps: 0}
      long: {model.init_args.schedule.init_args.warmup_steps: 100}
    grid:                                  instead of variants, or beside them: every combination of the levels
      rate: {low: {model.init_args.optimizer.init_args.lr: 1e-3}, high: {...}}
      width: {64: {model.init_args.config.n_embd: 64}, 128: {...}}        -> low-64, low-128, high-64, high-128
    seeds: [1, 2, 3]
    more_seeds: {low-*: [4, 5]}            optional: further seeds of the variants that match
    metrics: [val/loss]                    the first decides
    better: {val/mean_length: larger}      or smaller, of metrics for which metrics.py does not know it
    equal: {training_flops: 0.02}          or parameters, tokens, seconds: refused when a variant differs by more
    against: previous                      a ladder: each variant is compared with the one before it; none: nothing is
    fewer_seeds: [2, 3, 5]                 optional: how often so many of the seeds would have given the same verdict
    needs: {models/sft: lightning-gpt export runs/sft models/sft}      optional: paths that must be there before, each
                                           with the command that makes it
    smoke: {prepare.source: shakespeare}   settings for `--smoke` alone

With `measure` instead of `configs`, `prepare` and `budget` nothing is trained: see measurement.py.

A variant's keys that begin with `prepare.` change its corpus; `budget.tokens: 4e6` and its like change its budget.

Data that are no corpus are named in the configs or overrides, without `prepare`, such as
`data.class_path: lightning_gpt.data.PreferenceData` with `train` and `val`; their budget is max_steps or seconds. Other
rows, pictures that rows name, or weights in `init_from` are new runs, as other settings are (data_files.py).

Seconds are those of training on this machine, without the start of the process and the validations. Before the first
run two short ones measure what a step of each variant takes, which fixes its number of steps for all seeds and for good
(wall_time.py).
"""

import fnmatch
import itertools
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.measurement import (
    check_complete,
    check_without_training,
    checked_arguments,
    measure_function,
)
from lightning_gpt.experiments.metrics import check_metric, checked_better, direction_of
from lightning_gpt.experiments.settings import read_yaml
from lightning_gpt.experiments.spec_checks import (
    BUDGET_KEY,
    check_name,
    check_prepare,
    checked_budget,
    checked_configs,
    checked_equal,
    checked_list,
    checked_needs,
    checked_seeds,
    checked_settings,
    nearest,
)

AGAINST = ("baseline", "previous", "none")


@dataclass(frozen=True)
class Variant:
    """One thing that is compared."""

    name: str
    overrides: dict[str, Any]
    """Dotted setting of `lightning-gpt fit` -> value."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """Settings of `lightning-gpt prepare` that differ from the common ones."""
    budget: dict[str, float] = field(default_factory=dict)
    """Its own, where it has one."""
    seeds: tuple[int, ...] = ()
    """All that it runs with."""


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    path: Path
    question: str
    """What is asked, in one sentence."""
    seeds: list[int]
    """Each variant runs once with each of them; differences are taken between runs of one seed."""
    configs: list[Path] = field(default_factory=list)
    """Configuration files of `lightning-gpt fit`, stacked."""
    measure: str = ""
    """Function that makes the numbers of a cell, where nothing is trained."""
    axis: str = ""
    """What the rows of `measure` are drawn over."""
    scatter: list[str] = field(default_factory=list)
    """Two metrics of which a picture shows each variant's means, the second over the first."""
    variants: dict[str, Variant] = field(default_factory=dict)
    """By name, the baseline first; those of the grid are among them."""
    grid: dict[str, list[str]] = field(default_factory=dict)
    """Factor -> its levels; a variant of the grid is named by its levels, joined with '-'."""
    budget: dict[str, float] = field(default_factory=dict)
    """One of max_steps, tokens, training_flops, bytes, seconds -> how many of them each run gets; may be missing where
    every variant has its own."""
    more_seeds: dict[str, list[int]] = field(default_factory=dict)
    """Pattern of variants' names -> seeds that they run with beside `seeds`."""
    metrics: list[str] = field(default_factory=lambda: ["val/loss"])
    """What is compared at the end of training; the first is the one that decides."""
    better: dict[str, str] = field(default_factory=dict)
    """Metric, or curve -> smaller or larger; all of them, whether the file says it or it is known."""
    expectation: str = ""
    """What should come out, and why."""
    notes: str = ""
    """What a reader must know to judge the comparison."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted settings that all variants share."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """The corpus as arguments of `lightning-gpt prepare`; empty: the configs name a prepared one."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of `--smoke` alone, such as a corpus that is always there."""
    validations: int = 4
    """Validation passes of a run, evenly spaced, the last at its end."""
    curve: str = ""
    """The metric that is drawn over training; empty: the first of `metrics`."""
    against: str = "baseline"
    """What a variant is compared with: the baseline, the previous one (a ladder, where each step keeps those before
    it), or none."""
    equal: dict[str, float] = field(default_factory=dict)
    """parameters, training_flops, tokens, seconds -> by which share a variant may differ from the baseline; checked
    before the runs (seconds as foretold from the measured step)."""
    identical_within: float | None = None
    """Variants are one computation by several means: the largest difference of `curve` to the baseline's, at any step
    and in nats, that still counts as the same."""

    fewer_seeds: list[int] = field(default_factory=list)
    """Numbers of seeds, at most all: the report tells how often so many would have given which verdict."""
    needs: dict[str, str] = field(default_factory=dict)
    """Path that must be there -> command that makes it."""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.stem

    @property
    def chapter(self) -> str:
        """The folder of the file."""
        return self.path.absolute().parent.name

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))

    @property
    def knows_seconds(self) -> bool:
        """Whether it asks what a step takes: a budget of seconds, or equality in them."""
        budgets = [self.budget, self.equal, *(variant.budget for variant in self.variants.values())]
        return any("seconds" in one for one in budgets)

    @property
    def compares(self) -> bool:
        """Whether it asks for verdicts, which need two seeds."""
        return len(self.variants) > 1 and self.against != "none" and self.identical_within is None


def load_experiment(path: str | Path) -> Experiment:
    """Reads and checks an experiment's YAML.

    Raises:
        ValueError: one line that names the file, the field and the mend.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        return checked_experiment(path, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checked_experiment(path: Path, content: dict[str, Any]) -> Experiment:
    """As load_experiment, of a file's content.

    Args:
        path: names the experiment; not read.
        content: the fields.

    Raises:
        ValueError: one line that names the field and the mend.
    """
    known = {one.name: one for one in fields(Experiment) if one.name != "path"}
    for key in content:
        if key not in known:
            raise ValueError(f"unknown field {key!r}{nearest(key, known)}")
    for name, one in known.items():
        if name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"the field {name!r} is missing")
    values, check = dict(content), checked_settings
    function = measure_function(content["measure"]) if "measure" in content else None
    if function:
        check_without_training(content)

        def check(where: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return checked_arguments(function, where, value), {}

    elif "configs" not in content:
        raise ValueError("the field 'configs' is missing")
    else:
        values["configs"] = checked_configs(content["configs"])
    values["overrides"], common_prepare = check("overrides", content.get("overrides"))
    values["prepare"] = {**(content.get("prepare") or {}), **common_prepare}
    check_prepare("prepare", values["prepare"])
    check("smoke", content.get("smoke"))
    values["seeds"] = checked_seeds(content["seeds"])
    values["more_seeds"], levels = content.get("more_seeds") or {}, content.get("grid") or {}
    variants = [*_listed(content.get("variants"), check), *_grid(levels, check)]
    if not variants:
        raise ValueError("give `variants` or a `grid`: there is nothing to run")
    values["variants"] = _with_seeds(variants, values["seeds"], values["more_seeds"])
    values["grid"] = {str(factor): [str(level) for level in of] for factor, of in levels.items()}
    for variant in variants if function else ():
        check_complete(function, f"variants.{variant.name}", {**values["overrides"], **variant.overrides})
    if not values["prepare"] and any(variant.prepare for variant in variants):
        raise ValueError("variants change the corpus, but there is no `prepare` with its source")
    if values["prepare"] and "source" not in values["prepare"]:
        raise ValueError("prepare.source is missing: name a corpus, a file or a folder")
    if "budget" in content:
        values["budget"] = checked_budget(content["budget"])
    elif not function and (lacking := next((variant.name for variant in variants if not variant.budget), None)):
        raise ValueError(f"the field 'budget' is missing, and variant {lacking} has none of its own")
    values["equal"] = checked_equal(content.get("equal") or {})
    values["metrics"] = checked_list(content.get("metrics", ["val/loss"]), "metrics")
    values["curve"] = content.get("curve") or values["metrics"][0]
    values["scatter"] = content.get("scatter") or []
    if values["scatter"] and (len(values["scatter"]) != 2 or not set(values["scatter"]) <= set(values["metrics"])):
        raise ValueError(f"scatter={values['scatter']!r} must be two of the metrics: {', '.join(values['metrics'])}")
    used = dict.fromkeys([*values["metrics"], values["curve"]])
    stated = checked_better(content.get("better") or {}, used)
    for name in used:
        check_metric(name, stated)
    values["better"] = {name: stated.get(name) or direction_of(name) for name in used}
    values["needs"] = checked_needs(content.get("needs") or {})
    if not isinstance(values.get("validations", 1), int) or values.get("validations", 1) < 1:
        raise ValueError(f"validations={values['validations']!r} must be at least 1")
    values["against"] = str(content.get("against", "baseline")).lower()
    if values["against"] not in AGAINST:
        raise ValueError(f"against={content['against']!r} is unknown: use {' or '.join(AGAINST)}")
    tolerance = values.get("identical_within")
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance > 0):
        raise ValueError(f"identical_within={tolerance!r} must be a positive number of nats")
    for name in ("question", "expectation", "notes", "axis"):
        values[name] = " ".join(str(content.get(name) or "").split())
    if not values["question"]:
        raise ValueError("question is empty: say what the experiment asks")
    experiment = Experiment(path=path, **values)
    if experiment.compares and min(len(one.seeds) for one in experiment.variants.values()) < 2:
        raise ValueError(
            f"seeds={values['seeds']!r}: a comparison needs at least two (one run says nothing about the next); say "
            "`against: none` to run variants without comparing them"
        )
    _check_fewer(experiment)
    return experiment


def _check_fewer(experiment: Experiment) -> None:
    """Refuses numbers of seeds that cannot be chosen, and those of an experiment without verdicts."""
    given = experiment.fewer_seeds
    if not given and isinstance(given, list):
        return
    most = min(len(variant.seeds) for variant in experiment.variants.values())
    counts = isinstance(given, list) and all(type(n) is int and 2 <= n <= most for n in given)
    if not counts or sorted(set(given)) != given:
        raise ValueError(f"fewer_seeds={given!r} must be rising whole numbers from 2 to {most}, the seeds of a variant")
    if not experiment.compares:
        raise ValueError("fewer_seeds asks for verdicts, but nothing is compared: leave it out")


Settings = tuple[dict[str, Any], dict[str, Any]]
"""Those of fit, or of the measuring function, and those of prepare."""


def _variant(where: str, name: str, settings: Any, check: Callable[[str, Any], Settings]) -> Variant:
    if not isinstance(settings or {}, dict):
        raise ValueError(f"{where} must be dotted settings (key: value), not {settings!r}")
    budget = {key: value for key, value in (settings or {}).items() if str(key).startswith(BUDGET_KEY)}
    rest = {key: value for key, value in (settings or {}).items() if key not in budget}
    fit, prepare = check(where, rest)
    own = {key.removeprefix(BUDGET_KEY): value for key, value in budget.items()}
    return Variant(name, fit, prepare, checked_budget(own, f"{where}: budget") if own else {})


def _listed(value: Any, check: Callable[[str, Any], Settings]) -> list[Variant]:
    if value is None:
        return []
    if not isinstance(value, dict) or not value:
        raise ValueError(f"variants={value!r} must map at least one name to its dotted settings")
    for name in value:
        check_name(str(name), "variant")
    return [_variant(f"variants.{name}", str(name), settings, check) for name, settings in value.items()]


def _grid(value: Any, check: Callable[[str, Any], Settings]) -> list[Variant]:
    """Every combination of the levels; of two levels that set one thing, that of the later factor wins."""
    if not isinstance(value, dict) or any(not isinstance(levels, dict) or not levels for levels in value.values()):
        raise ValueError(f"grid={value!r} must map factors to levels with their dotted settings")
    for factor, levels in value.items():
        for level in levels:
            check_name(str(level), f"grid.{factor}: level")
    variants = []
    for levels in itertools.product(*(levels.items() for levels in value.values())) if value else ():
        name = "-".join(str(level) for level, _ in levels)
        merged = {key: one for _, settings in levels for key, one in (settings or {}).items()}
        variants.append(_variant(f"grid.{name}", name, merged, check))
    return variants


def _with_seeds(variants: list[Variant], seeds: list[int], more: Any) -> dict[str, Variant]:
    """The variants by name, with all the seeds that each runs with."""
    if not isinstance(more, dict):
        raise ValueError(f"more_seeds={more!r} must map patterns of variants' names to lists of seeds")
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"variant {name!r} is named twice, in `variants` and by the `grid`")
    own = {name: list(seeds) for name in names}
    for pattern, further in more.items():
        matching = fnmatch.filter(names, str(pattern))
        if not matching:
            raise ValueError(f"more_seeds: no variant matches {pattern!r}{nearest(pattern, names)}")
        for name in matching:
            own[name] = checked_seeds([*own[name], *checked_list(further, "more_seeds")], f"more_seeds.{pattern}")
    return {
        one.name: Variant(one.name, one.overrides, one.prepare, one.budget, tuple(own[one.name])) for one in variants
    }
