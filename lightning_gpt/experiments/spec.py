"""What an experiment is: the content of its YAML file, checked before anything runs.

    question: Does warm-up matter?
    expectation: ...                       what one should find, written before the run
    configs: [configs/pretrain/x.yaml]     as -c of `lightning-gpt fit`, paths as it takes them
    prepare: {source: shakespeare, tokenizer: char}     optional: the corpus, as `lightning-gpt prepare` takes it
    budget: {max_steps: 400}               or tokens, training_flops, bytes: the same for every variant
    overrides: {data.init_args.batch_size: 12}          settings common to all, dotted
    variants:                              the first is the baseline
      none: {model.init_args.schedule.init_args.warmup_steps: 0}
      long: {model.init_args.schedule.init_args.warmup_steps: 100}
    seeds: [1, 2, 3]
    metrics: [val/loss]                    the first decides, smaller is better
    equal: {training_flops: 0.02}          or parameters: refused when a variant differs by more than this share
    against: previous                      a ladder: each variant is compared with the one before it

A variant's keys that begin with `prepare.` change its corpus.
"""

import difflib
import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.settings import read_yaml
from lightning_gpt.nn import GPTConfig

EQUAL = ("parameters", "training_flops")
AGAINST = ("baseline", "previous")
BUDGETS = ("max_steps", "tokens", "training_flops", "bytes")
METRICS = ("val/loss", "val/perplexity", "val/bits_per_byte", "train/loss", "train/perplexity")
FAMILIES = re.compile(r"val/loss_at_\d+|experts/(max_violation|min_load|dropped|entropy)")
"""Metrics that only some runs have: longer validation windows, a mixture of experts."""
GROUPS = ("trainer", "model", "data", "samples", "best", "last", "curve", "progress")
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
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class Variant:
    """One thing that is compared."""

    name: str
    overrides: dict[str, Any]
    """Dotted setting of `lightning-gpt fit` -> value."""
    prepare: dict[str, Any]
    """Settings of `lightning-gpt prepare` that differ from the common ones."""


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    path: Path
    question: str
    """What is asked, in one sentence."""
    configs: list[Path]
    """Configuration files of `lightning-gpt fit`, stacked."""
    variants: dict[str, Variant]
    """By name, the baseline first."""
    budget: dict[str, float]
    """One of max_steps, tokens, training_flops, bytes -> how many of them each run gets."""
    seeds: list[int]
    """Each variant runs once with each of them; differences are taken between runs of one seed."""
    metrics: list[str] = field(default_factory=lambda: ["val/loss"])
    """What is compared at the end of training; the first is the one that decides."""
    expectation: str = ""
    """What should come out, and why."""
    notes: str = ""
    """What a reader must know to judge the comparison."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted settings that all variants share."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """The corpus as arguments of `lightning-gpt prepare`; empty: the configs name a prepared one."""
    validations: int = 4
    """Validation passes of a run, evenly spaced, the last at its end."""
    curve: str = ""
    """The metric that is drawn over training; empty: the first of `metrics`."""
    against: str = "baseline"
    """What a variant is compared with: the baseline, or the previous one, where each step keeps those before it."""
    equal: dict[str, float] = field(default_factory=dict)
    """parameters, training_flops -> by which share a variant may differ from the baseline; checked before the runs."""
    identical_within: float | None = None
    """Variants are one computation by several means: the largest difference of `curve` to the baseline's, at any step
    and in nats, that still counts as the same."""

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


def load_experiment(path: str | Path) -> Experiment:
    """Reads and checks an experiment's YAML.

    Raises:
        ValueError: one line that names the file, the field and the mend.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        return _checked(path, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(path: Path, content: dict[str, Any]) -> Experiment:
    known = {one.name: one for one in fields(Experiment) if one.name != "path"}
    for key in content:
        if key not in known:
            raise ValueError(f"unknown field {key!r}{_near(key, known)}")
    for name, one in known.items():
        if name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"the field {name!r} is missing")
    values = dict(content)
    values["configs"] = _configs(content["configs"])
    values["overrides"], common_prepare = _overrides("overrides", content.get("overrides"))
    values["prepare"] = {**(content.get("prepare") or {}), **common_prepare}
    _check_prepare("prepare", values["prepare"])
    values["variants"] = _variants(content["variants"])
    if not values["prepare"] and any(variant.prepare for variant in values["variants"].values()):
        raise ValueError("variants change the corpus, but there is no `prepare` with its source")
    if values["prepare"] and "source" not in values["prepare"]:
        raise ValueError("prepare.source is missing: name a corpus, a file or a folder")
    values["budget"] = _budget(content["budget"])
    values["equal"] = _equal(content.get("equal") or {})
    values["seeds"] = _seeds(content["seeds"])
    metrics = _list(content.get("metrics", ["val/loss"]), "metrics")
    for name in [*metrics, *filter(None, [content.get("curve")])]:
        if name not in METRICS and not FAMILIES.fullmatch(name):
            raise ValueError(f"metric {name!r} is unknown{_near(name, METRICS)}: use {', '.join(METRICS)}")
    values["metrics"] = metrics
    values["curve"] = content.get("curve") or metrics[0]
    if not isinstance(values.get("validations", 1), int) or values.get("validations", 1) < 1:
        raise ValueError(f"validations={values['validations']!r} must be at least 1")
    if values.get("against", "baseline") not in AGAINST:
        raise ValueError(f"against={values['against']!r} is unknown: use {' or '.join(AGAINST)}")
    tolerance = values.get("identical_within")
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance > 0):
        raise ValueError(f"identical_within={tolerance!r} must be a positive number of nats")
    for name in ("question", "expectation", "notes"):
        values[name] = " ".join(str(content.get(name) or "").split())
    if not values["question"]:
        raise ValueError("question is empty: say what the experiment asks")
    return Experiment(path=path, **values)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}={value!r} must be a list with at least one element")
    return value


def _configs(value: Any) -> list[Path]:
    paths = [Path(str(one)) for one in _list(value, "configs")]
    for one in paths:
        if not one.is_file():
            raise ValueError(f"configs: {one} does not exist (paths start at the working directory {Path.cwd()})")
    return paths


def _overrides(where: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of fit and those of prepare among dotted settings."""
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
            raise ValueError(f"{where}: unknown setting {key!r}{_near(key, GROUPS)}: it must begin with one of "
                             f"{', '.join(GROUPS)} or prepare")  # fmt: skip
        config_field = key.removeprefix(CONFIG_KEY)
        names = [one.name for one in fields(GPTConfig)]
        if config_field != key and config_field not in names:
            raise ValueError(f"{where}: model.config has no field {config_field!r}{_near(config_field, names)}")
        fit[key] = setting
    return fit, prepare


def _variants(value: Any) -> dict[str, Variant]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"variants={value!r} must map at least one name to its dotted settings")
    variants = {}
    for name, settings in value.items():
        name = str(name)
        if not NAME.fullmatch(name):
            raise ValueError(f"variant {name!r} must be letters, digits and any of ._+- (it names a directory)")
        fit, prepare = _overrides(f"variants.{name}", settings)
        _check_prepare(f"variants.{name}", prepare)
        variants[name] = Variant(name, fit, prepare)
    return variants


def _check_prepare(where: str, settings: dict[str, Any]) -> None:
    from lightning_gpt.data.prepare import prepare

    names = [name for name in inspect.signature(prepare).parameters if name not in ("out", "overwrite", "quiet")]
    for name in settings:
        if name not in names:
            raise ValueError(f"{where}: prepare has no setting {name!r}{_near(name, names)}")


def _budget(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"budget={value!r} must be one of {', '.join(BUDGETS)} with its amount, as {{max_steps: 400}}")
    (kind, amount), = value.items()  # fmt: skip
    if kind not in BUDGETS:
        raise ValueError(f"budget: unknown kind {kind!r}{_near(kind, BUDGETS)}: use {', '.join(BUDGETS)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount > 0:
        raise ValueError(f"budget.{kind}={amount!r} must be a positive number")
    return {kind: amount}


def _equal(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError(f"equal={value!r} must map {' or '.join(EQUAL)} to a share, as {{parameters: 0.01}}")
    for kind, share in value.items():
        if kind not in EQUAL:
            raise ValueError(f"equal: unknown kind {kind!r}{_near(kind, EQUAL)}: use {', '.join(EQUAL)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"equal.{kind}={share!r} must be a share, at least 0 and below 1")
    return value


def _seeds(value: Any) -> list[int]:
    seeds = _list(value, "seeds")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"seeds={seeds!r} must be whole numbers of at least 0")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r} names one twice: it would be the same run again")
    return seeds


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
