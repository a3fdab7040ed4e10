"""The Optuna study of a search: its sampler, its pruner, its SQLite file, its identity."""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_gpt
from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.experiments.data_files import data_files, model_files
from lightning_gpt.experiments.plan import prepare_corpus
from lightning_gpt.experiments.search_spec import Search, base_settings
from lightning_gpt.experiments.settings import lookup, read_yaml
from lightning_gpt.experiments.spec_checks import PREPARE_KEY, nearest

STUDY_FILE = "study.db"
LOCK_FILE = "search.lock"
IDENTITY = "identity"
"""Attribute of the study: field -> digest of what its trials have in common."""
DATA_KEY = "data.init_args.data_dir"
ROWS_KEY = "data.init_args.train"
BUSY_SECONDS = 120
"""How long a process waits for another to finish writing."""

SAMPLER_CLASSES = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
}
PRUNER_CLASSES = {
    "asha": "SuccessiveHalvingPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "none": "NopPruner",
}
NEEDS = {"cmaes": "cmaes", "gp": "torch", "qmc": "scipy"}
"""Sampler -> package that it needs beside Optuna."""


def import_optuna() -> Any:
    """Optuna, without its lines about every trial.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("a search needs Optuna: pip install 'lightning_gpt[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def build_sampler(search: Search, number: int = 0) -> Any:
    """Optuna's sampler for one trial.

    Its seed depends on the trial's number: a search that goes on after a kill does not draw again what it drew before,
    and two processes do not draw the same.

    Args:
        search: of load_search.
        number: of trials already begun.

    Raises:
        ValueError: an option that the sampler does not have, or a package that it lacks.
    """
    optuna = import_optuna()
    options = dict(search.sampler)
    kind, seed = options.pop("kind"), options.pop("seed", 0)
    # These two keep their place in the storage and must be themselves again in every process.
    options["seed"] = seed if kind in ("grid", "qmc") else (1_000_003 * seed + number) % 2**32
    if kind == "grid":
        options["search_space"] = {key: dimension.grid() for key, dimension in search.space.items()}
    if kind in NEEDS:
        try:
            __import__(NEEDS[kind])
        except ImportError:
            raise ValueError(f"sampler={kind} needs `pip install {NEEDS[kind]}`") from None
    return _built(getattr(optuna.samplers, SAMPLER_CLASSES[kind]), "sampler", kind, options)


def build_pruner(search: Search) -> Any:
    """Optuna's pruner. Its steps and resources are validations, which every trial has equally many of, evenly spread
    over its budget: so trials of different sizes are compared at equal shares of it.

    Args:
        search: of load_search.

    Raises:
        ValueError: an option that the pruner does not have, or its value.
    """
    optuna = import_optuna()
    options = dict(search.pruner)
    kind = options.pop("kind")
    if kind == "asha":
        options = {"min_resource": 1, "reduction_factor": 3, **options}
    if kind == "hyperband":
        options = {"min_resource": 1, "max_resource": search.base.validations, "reduction_factor": 3, **options}
    if kind == "percentile":
        options = {"percentile": 25.0, **options}
    return _built(getattr(optuna.pruners, PRUNER_CLASSES[kind]), "pruner", kind, options)


def _built(chosen: Callable[..., Any], where: str, kind: str, options: dict[str, Any]) -> Any:
    import warnings

    known = list(inspect.signature(chosen).parameters)
    for name in options:
        if name not in known and not (name == "seed" and where == "sampler"):
            raise ValueError(f"{where}={kind} has no option {name!r}{nearest(name, known)}: use {', '.join(known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental in Optuna is for its changelog
            return chosen(**{name: one for name, one in options.items() if name in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}={kind}: {' '.join(str(error).split())}") from None


def open_study(search: Search, directory: Path) -> Any:
    """The study in `directory`, made with the trials of `start` waiting in it if there is none.

    To be called by one process at a time (`locked`).
    """
    optuna = import_optuna()
    path = directory / STUDY_FILE
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
    study = optuna.create_study(
        study_name=search.base.name,
        storage=storage,
        direction="minimize",
        load_if_exists=True,
        sampler=build_sampler(search),
        pruner=build_pruner(search),
    )
    if not study.get_trials(deepcopy=False):
        for settings in search.start:
            study.enqueue_trial({key: search.space[key].drawn(one) for key, one in settings.items()})
    return study


def check_identity(search: Search, study: Any) -> None:
    """Refuses to mix trials of different searches; more `trials`, another sampler or pruner are no difference.

    Args:
        search: as it is now.
        study: of open_study.

    Raises:
        ValueError: names what has changed.
    """
    base = search.base
    decisive = {
        "space": {key: dimension.text() for key, dimension in search.space.items()},
        "metric": search.metric,
        "seeds": base.seeds,
        "budget": [base.budget, base.validations],
        "overrides": base.overrides,
        "configs": [read_yaml(path) for path in base.configs],
        "corpus": [base.prepare, _fingerprint(search)],
        "version of lightning_gpt": lightning_gpt.__version__,
    }
    digests = {
        name: hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]
        for name, one in decisive.items()
    }
    before = study.user_attrs.get(IDENTITY)
    if before is None:
        study.set_user_attr(IDENTITY, digests)
    elif changed := [name for name in digests if digests[name] != before.get(name)]:
        raise ValueError(
            f"{base.path}: earlier trials were made under another {' and other '.join(changed)}: give the search a "
            "file of another name, or --restart to throw them away"
        )


def _fingerprint(search: Search) -> str | None:
    """Of the corpus, which is prepared or found ready, or of other data and of models to start from; None where the
    trials differ in the data."""
    if any(key.startswith(PREPARE_KEY) or key in (DATA_KEY, ROWS_KEY) for key in search.space):
        return None
    if search.base.prepare:
        return CorpusMeta.load(prepare_corpus(search.base.prepare)).fingerprint
    tree = base_settings(search.base)
    try:
        corpus = CorpusMeta.load(directory).fingerprint if (directory := lookup(tree, DATA_KEY)) else ""
        files = [*model_files(tree), *(() if corpus else data_files(tree))]
    except ValueError as error:
        raise ValueError(f"{search.base.path}: {error}") from None
    return "".join([corpus, *(one.sha256 or one.path for one in files)])


def asked(search: Search, study: Any) -> Any:
    """A new trial of the study, every setting drawn."""
    study.sampler = build_sampler(search, len(study.get_trials(deepcopy=False)))
    return study.ask({key: dimension.distribution() for key, dimension in search.space.items()})


def adopted(search: Search, study: Any, trial_id: int) -> Any:
    """A trial that another process began and did not end; what had not been drawn yet is drawn."""
    optuna = import_optuna()
    trial = optuna.Trial(study, trial_id)
    for key, dimension in search.space.items():
        distribution = dimension.distribution()
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            trial.suggest_categorical(key, distribution.choices)
        elif isinstance(distribution, optuna.distributions.IntDistribution):
            trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
        else:
            trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    return trial


def settings_of(search: Search, params: dict[str, Any]) -> dict[str, Any]:
    """What Optuna drew as dotted settings."""
    return {key: search.space[key].value(params[key]) for key in search.space}
