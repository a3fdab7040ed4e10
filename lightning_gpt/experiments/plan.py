"""From an experiment to its cells: corpora prepared, lengths of runs computed, every setting fixed and hashed."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning_gpt
from lightning_gpt.data import TokenData
from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.data.prepare import prepare
from lightning_gpt.experiments.budgets import count_steps
from lightning_gpt.experiments.data_files import NamedFile, data_files, model_files
from lightning_gpt.experiments.metrics import loss_unit
from lightning_gpt.experiments.settings import lookup, nested, overlaid, read_yaml
from lightning_gpt.experiments.spec import Experiment, Variant
from lightning_gpt.experiments.spec_checks import checked_settings
from lightning_gpt.experiments.wall_time import SECONDS, Asked, step_times, steps_that_fill
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import body_parameters, parameters, training_flops_per_token

RUNS = Path("runs/experiments")
CORPORA = Path("data/experiments")
SMOKE_STEPS = 2
STEP_TIMES = ".step_times"
"""Holds what steps were measured to take, beside the variants' directories."""

QUIET = {"samples.tokens": 0, "curve.enabled": False}
"""What a cell does without, unless the experiment sets it."""


@dataclass(frozen=True)
class Cell:
    """One training run: a variant with a seed."""

    variant: str
    seed: int
    directory: Path
    """Holds config.yaml (what is laid over `configs`), state.json, fit.log and the run's version_0."""
    configs: list[Path]
    settings: dict[str, Any]
    """Nested, laid over `configs`."""
    max_steps: int
    tokens_per_step: int | None
    """None: the number of devices is not fixed, or the data are no corpus."""
    flops_per_token: float | None
    """Analytic, forward and backward; None: the model is not described by a GPTConfig."""
    parameters: int | None
    body_parameters: int | None
    """Without embeddings."""
    active_parameters: int | None
    """What one token meets: fewer than `parameters` with a mixture of experts."""
    data_dir: str | None
    """Of the corpus; None: the data are none."""
    config_hash: str
    """Of everything that decides the result: all settings, the corpus' fingerprint, the contents of `files`, this
    package's version."""
    step_seconds: float | None = None
    """What a step was measured to take before the runs; None: nobody asked."""
    files: list[NamedFile] = field(default_factory=list)
    """Rows that it learns from and models that it starts from."""
    loss_unit: str = ""
    """Of the losses that it logs."""
    measure: str = ""
    """Function that makes its numbers; "": it trains."""

    @property
    def seconds(self) -> float | None:
        """Of training, foretold for the whole run."""
        return None if self.step_seconds is None else self.max_steps * self.step_seconds

    @property
    def tokens(self) -> int | None:
        """Of the whole run."""
        return None if self.tokens_per_step is None else self.max_steps * self.tokens_per_step

    @property
    def training_flops(self) -> float | None:
        """Of the whole run."""
        if self.tokens_per_step is None or self.flops_per_token is None:
            return None
        return self.max_steps * self.tokens_per_step * self.flops_per_token


LENGTH = ("trainer.max_steps", "trainer.val_check_interval")
ONLY_SHOWN = ("run", "progress", "curve", "diagnosis")
"""Groups of settings that decide what is shown and kept of a run, not its numbers."""
Check = Callable[[Sequence[Path], dict[str, Any]], None]
"""Configuration files and nested settings laid over them -> ValueError unless training would take them."""


def plan_cells(
    experiment: Experiment, runs: Path = RUNS, smoke: bool = False, check: Check | None = None
) -> list[Cell]:
    """All cells, seed by seed, so that a run stopped half-way has whole comparisons.

    Corpora that the experiment asks for are prepared, or found ready; where it asks for seconds, short runs measure the
    steps, or an earlier measurement is found.

    Args:
        experiment: the checked file.
        runs: where run directories go: <runs>/<chapter>/<name>/<variant>/seed_<n>.
        smoke: two steps per variant with the first seed, beside the real runs.
        check: of each variant's settings, before a corpus is prepared or anything runs.

    Raises:
        ValueError: something that the experiment needs is not there, settings that training does not have, a corpus or
            a budget that cannot be, variants that are not as equal as asked; one line.
        RuntimeError: a short run failed.
    """
    _check_needs(experiment)
    root = runs / ("smoke" if smoke else "") / experiment.chapter / experiment.name
    if experiment.measure:
        return _measured_cells(experiment, root, smoke)
    placeholder = {"data.init_args.data_dir": str(CORPORA)} if experiment.prepare else {}
    for variant in experiment.variants.values() if check else ():
        try:
            check(experiment.configs, nested({**placeholder, **_dotted(experiment, variant, smoke)}))
        except ValueError as error:
            raise ValueError(f"{experiment.path}: variants.{variant.name}: {error}") from None
    bases = [read_yaml(path) for path in experiment.configs]
    chosen = list(experiment.variants.values())
    digests: dict[Path, str] = {}
    variants = [_resolve(experiment, variant, bases, smoke, digests) for variant in chosen]
    _check_equal(experiment, "parameters", {one.name: one.parameters for one in variants})
    if not smoke and experiment.knows_seconds:
        variants = _timed(experiment, variants, root, bases)
    seeds = [(variant, (one.seeds[:1] if smoke else one.seeds)) for variant, one in zip(variants, chosen)]
    every = dict.fromkeys(seed for _, own in seeds for seed in own)
    cells = [_cell(experiment, variant, seed, root, bases) for seed in every for variant, own in seeds if seed in own]
    for kind in ("training_flops", "tokens", *(() if smoke else ("seconds",))):
        _check_equal(experiment, kind, {cell.variant: getattr(cell, kind) for cell in cells})
    return cells


@dataclass(frozen=True)
class _Resolved:
    """A variant with its numbers worked out."""

    name: str
    dotted: dict[str, Any]
    data_dir: str | None
    fingerprint: str | None
    """Of the corpus."""
    tokens_per_step: int | None
    flops_per_token: float | None
    network: GPTConfig | None
    max_steps: int | None
    """None: a matter of seconds, to be measured."""
    step_seconds: float | None = None
    files: list[NamedFile] = field(default_factory=list)
    loss_unit: str = ""

    @property
    def parameters(self) -> int | None:
        """Of the network."""
        return parameters(self.network) if self.network else None

    def with_steps(self, steps: int, interval: int) -> "_Resolved":
        """With the length of its runs."""
        length = {"trainer.max_steps": steps, "trainer.val_check_interval": interval}
        return replace(self, max_steps=steps, dotted={**self.dotted, **length})


def _dotted(experiment: Experiment, variant: Variant, smoke: bool) -> dict[str, Any]:
    """Settings of fit that the file makes for a variant."""
    only_smoke = checked_settings("smoke", experiment.smoke if smoke else None)[0]
    return {**QUIET, **experiment.overrides, **variant.overrides, **only_smoke}


def _resolve(
    experiment: Experiment, variant: Variant, bases: list[dict[str, Any]], smoke: bool, digests: dict[Path, str]
) -> _Resolved:
    dotted = _dotted(experiment, variant, smoke)
    only_smoke = checked_settings("smoke", experiment.smoke if smoke else None)[1]
    corpus_settings = {**experiment.prepare, **variant.prepare, **only_smoke}
    if corpus_settings:
        dotted["data.init_args.data_dir"] = str(prepare_corpus(corpus_settings))
    tree: dict[str, Any] = {}
    for base in bases:
        tree = overlaid(tree, base)
    tree = overlaid(tree, nested(dotted))
    data_dir, meta, network = lookup(tree, "data.init_args.data_dir"), None, None
    try:
        files = [*(() if data_dir else data_files(tree, digests)), *model_files(tree, digests)]
    except ValueError as error:
        raise ValueError(f"{experiment.path}: {variant.name}: {error}") from None
    if data_dir:
        meta = CorpusMeta.load(data_dir)
        network = network_of(tree, meta.tokenizer.vocab_size)
    per_step = tokens_per_step(tree) if meta else None
    flops_per_token = training_flops_per_token(network, network.block_size) if network else None
    resolved = _Resolved(
        variant.name,
        dotted,
        data_dir,
        meta.fingerprint if meta else None,
        per_step,
        flops_per_token,
        network,
        max_steps=None,
        files=files,
        loss_unit=loss_unit(lookup(tree, "model.class_path"), meta is not None),
    )
    if smoke:
        dotted |= {"trainer.limit_val_batches": 2, "trainer.log_every_n_steps": 1}
        return resolved.with_steps(SMOKE_STEPS, SMOKE_STEPS)
    if "seconds" in (variant.budget or experiment.budget):
        return resolved
    steps = count_steps(experiment, variant, per_step, flops_per_token, meta)
    return resolved.with_steps(steps, steps // experiment.validations)


def _timed(
    experiment: Experiment, variants: list[_Resolved], root: Path, bases: list[dict[str, Any]]
) -> list[_Resolved]:
    """With what their steps take, where the experiment asks for seconds, and with the steps that depend on it."""
    asked: dict[str, Asked] = {}
    budgets = {name: (one.budget or experiment.budget).get("seconds") for name, one in experiment.variants.items()}
    for one in variants:
        if budgets[one.name] is not None or "seconds" in experiment.equal:
            dotted = {key: value for key, value in one.dotted.items() if key not in LENGTH}
            settings_hash = _settings_hash(replace(one, dotted=dotted), bases)
            seconds = budgets[one.name] or SECONDS
            asked[one.name] = Asked(one.name, settings_hash, experiment.configs, nested(dotted), seconds)
    try:
        found = step_times(root / STEP_TIMES, list(asked.values()))
        timed = []
        for one in variants:
            if one.name in asked:
                one = replace(one, step_seconds=found[asked[one.name].settings_hash].step_seconds)
                if budget := budgets[one.name]:
                    steps = steps_that_fill(budget, one.step_seconds, experiment.validations, one.name)
                    one = one.with_steps(steps, steps // experiment.validations)
            timed.append(one)
    except ValueError as error:
        raise ValueError(f"{experiment.path}: {error}") from None
    return timed


def prepare_corpus(settings: dict[str, Any], corpora: Path = CORPORA) -> Path:
    """The directory of a corpus, prepared unless it is there; its name tells corpora of different settings apart.

    Args:
        settings: keyword arguments of `prepare`.
        corpora: where it goes.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    source = Path(str(settings["source"])).name.split(".")[0]
    tokenizer = Path(str(settings.get("tokenizer", "default"))).name.replace(":", "-")
    return prepare(**settings, out=corpora / f"{source}_{tokenizer}_{digest}", quiet=True).directory


def _default(name: str) -> int:
    return inspect.signature(TokenData.__init__).parameters[name].default


def tokens_per_step(tree: dict[str, Any]) -> int | None:
    """Tokens of one optimizer step, all devices together.

    Args:
        tree: nested settings of fit; those that it lacks have their defaults. None: the number of devices is not fixed.
    """
    windows = lookup(tree, "data.init_args.batch_size", _default("batch_size"))
    block_size = lookup(tree, "data.init_args.block_size", _default("block_size"))
    devices = lookup(tree, "trainer.devices", "auto")
    devices = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else devices
    if not isinstance(devices, int) or devices < 1:
        return None
    nodes, accumulate = lookup(tree, "trainer.num_nodes", 1), lookup(tree, "trainer.accumulate_grad_batches") or 1
    return windows * block_size * devices * nodes * accumulate


def network_of(tree: dict[str, Any], vocab_size: int) -> GPTConfig | None:
    """As training will build it; its block size is the training window. None: not described by a GPTConfig."""
    fields = lookup(tree, "model.init_args.config")
    if not isinstance(fields, dict):
        return None
    block_size = lookup(tree, "data.init_args.block_size", _default("block_size"))
    return GPTConfig.from_dict({**fields, "vocab_size": vocab_size, "block_size": block_size})


def _cell(experiment: Experiment, variant: _Resolved, seed: int, root: Path, bases: list[dict[str, Any]]) -> Cell:
    directory = root / variant.name / f"seed_{seed}"
    seeded = replace(variant, dotted={**variant.dotted, "seed_everything": seed})
    settings = overlaid(nested(seeded.dotted), {"run": {"dir": str(directory.parent), "name": directory.name}})
    return Cell(
        variant=variant.name,
        seed=seed,
        directory=directory,
        configs=experiment.configs,
        settings=settings,
        max_steps=variant.max_steps,
        tokens_per_step=variant.tokens_per_step,
        flops_per_token=variant.flops_per_token,
        parameters=variant.parameters,
        body_parameters=body_parameters(variant.network) if variant.network else None,
        active_parameters=parameters(variant.network, active=True) if variant.network else None,
        data_dir=variant.data_dir,
        config_hash=_settings_hash(seeded, bases),
        step_seconds=variant.step_seconds,
        files=variant.files,
        loss_unit=variant.loss_unit,
    )


def _measured_cells(experiment: Experiment, root: Path, smoke: bool) -> list[Cell]:
    """Cells of an experiment that trains nothing, seed by seed."""
    digests: dict[Path, str] = {}
    every = dict.fromkeys(seed for one in experiment.variants.values() for seed in one.seeds)
    cells = []
    for seed in every:
        for name, variant in experiment.variants.items():
            if seed not in (variant.seeds[:1] if smoke else variant.seeds):
                continue
            settings = {**experiment.overrides, **variant.overrides, **(experiment.smoke if smoke else {})}
            found = model_files({"model": {"init_args": settings}}, digests)
            files = [replace(one, setting=one.setting.removeprefix("model.init_args.")) for one in found]
            content = {"measure": experiment.measure, "settings": settings, "seed": seed}
            decisive = {**content, "files": [one.sha256 for one in files], "version": lightning_gpt.__version__}
            cell = Cell(
                variant=name,
                seed=seed,
                directory=root / name / f"seed_{seed}",
                configs=[],
                settings=content,
                max_steps=1,
                tokens_per_step=None,
                flops_per_token=None,
                parameters=None,
                body_parameters=None,
                active_parameters=None,
                data_dir=None,
                config_hash=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
                files=files,
                measure=experiment.measure,
            )
            cells.append(cell)
    return cells


def _settings_hash(variant: _Resolved, bases: list[dict[str, Any]]) -> str:
    deciding = {key: value for key, value in variant.dotted.items() if key.partition(".")[0] not in ONLY_SHOWN}
    decisive = {
        "configs": [{key: value for key, value in base.items() if key not in ONLY_SHOWN} for base in bases],
        "settings": nested(deciding),
        "corpus": variant.fingerprint,
        "version": lightning_gpt.__version__,
    }
    if variant.files:
        decisive["files"] = [[one.setting, one.path, one.sha256] for one in variant.files]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _check_needs(experiment: Experiment) -> None:
    """Refuses to begin without what must be made first; the command is that of the first that lacks."""
    for path, command in experiment.needs.items():
        if not Path(path).exists():
            raise ValueError(f"{experiment.path}: needs {path}, which does not exist; it is made by: {command}")


def _check_equal(experiment: Experiment, kind: str, values: dict[str, float | None]) -> None:
    """Refuses variants that differ too much in what the experiment wants equal.

    Args:
        experiment: the checked file.
        kind: of `equal`; not asked for: nothing to check.
        values: variant -> how much of it, the baseline's first.
    """
    if (share := experiment.equal.get(kind)) is None:
        return
    (baseline, expected), *others = values.items()
    for name, found in others:
        if expected is None or found is None:
            raise ValueError(
                f"{experiment.path}: equal.{kind} cannot be checked: it needs a corpus, and model.init_args.config and "
                "trainer.devices as a number in the configs"
            )
        if abs(found / expected - 1) > share:
            raise ValueError(
                f"{experiment.path}: equal.{kind}={share:g}, but {name} has {found:,.6g} and {baseline} "
                f"{expected:,.6g} ({found / expected - 1:+.1%}): change one of them or the share"
            )
