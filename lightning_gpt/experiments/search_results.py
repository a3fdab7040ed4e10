"""results.json of a search: every trial and what was found, so that the report can be rewritten without the runs."""

import dataclasses
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_gpt.experiments.budgets import budget_in_words
from lightning_gpt.experiments.engines import LocalEngine
from lightning_gpt.experiments.machine import hardware, versions
from lightning_gpt.experiments.metrics import loss_unit
from lightning_gpt.experiments.plan import plan_cells
from lightning_gpt.experiments.results import collect_results
from lightning_gpt.experiments.runner import run_cells
from lightning_gpt.experiments.search_run import OUTCOME
from lightning_gpt.experiments.search_space import Choices, Range
from lightning_gpt.experiments.search_spec import Search, base_settings
from lightning_gpt.experiments.search_study import DATA_KEY, import_optuna, settings_of
from lightning_gpt.experiments.settings import lookup

FEWEST = 8
"""Trials below which importances would say nothing."""


def best_of(study: Any) -> Any | None:
    """The complete trial with the lowest value; None: no trial came to its end."""
    complete = import_optuna().trial.TrialState.COMPLETE
    found = [one for one in study.get_trials(deepcopy=False) if one.state == complete]
    return min(found, key=lambda one: (one.value, one.number), default=None)


def confirm(search: Search, study: Any, runs: Path, parallel: int = 1) -> dict[str, Any] | None:
    """Trains the best trial's settings and those of the first of `start` once more, with seeds that chose nothing.

    Args:
        search: with seeds for it.
        study: with all trials finished.
        runs: where directories of searches are.
        parallel: runs at a time.

    Returns:
        results of an experiment with the variants start and best; None: they are the same, or nothing was found.
    """
    best = best_of(study)
    if best is None or settings_of(search, best.params) == search.start[0]:
        return None
    variants = {
        name: dataclasses.replace(search.variant(name, settings), seeds=tuple(search.confirm))
        for name, settings in (("start", search.start[0]), ("best", settings_of(search, best.params)))
    }
    experiment = dataclasses.replace(search.base, variants=variants, seeds=search.confirm, against="baseline")
    cells = plan_cells(experiment, runs)
    run_cells(cells, search.metric, LocalEngine(parallel))
    return collect_results(experiment, cells, "")


def collect_search(search: Search, study: Any, command: str, confirmation: dict[str, Any] | None) -> dict[str, Any]:
    """Numbers of a finished search with what they were made on; nothing in it depends on the date.

    Args:
        search: of load_search.
        study: with all trials finished.
        command: what makes these results again.
        confirmation: of confirm.
    """
    best, tree = best_of(study), base_settings(search.base)
    corpus = bool(search.base.prepare or lookup(tree, DATA_KEY))
    trials = [_trial(search, one) for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    return {
        "format": 1,
        "command": command,
        "question": search.base.question,
        "expectation": search.base.expectation,
        "notes": search.base.notes,
        "configs": [path.as_posix() for path in search.base.configs],
        "prepare": search.base.prepare,
        "budget": budget_in_words(search.base),
        "validations": search.base.validations,
        "overrides": search.base.overrides,
        "space": {key: dimension.text() for key, dimension in search.space.items()},
        "logarithmic": [key for key, one in search.space.items() if isinstance(one, Range) and one.log],
        "choices": {key: list(one.values) for key, one in search.space.items() if isinstance(one, Choices)},
        "metric": search.metric,
        "loss_unit": loss_unit(lookup(tree, "model.class_path"), corpus),
        "seeds": search.base.seeds,
        "sampler": search.sampler,
        "pruner": search.pruner,
        "start": len(search.start),
        "best": None if best is None else best.number,
        "importance": importances(search, study),
        "confirmation": confirmation,
        "hardware": hardware(),
        "versions": {**versions(), "optuna": version("optuna")},
        "trials": trials,
    }


def _trial(search: Search, trial: Any) -> dict[str, Any]:
    outcome = {
        name.removeprefix(OUTCOME): value for name, value in trial.user_attrs.items() if name.startswith(OUTCOME)
    }
    return {
        "number": trial.number,
        "value": trial.value if outcome["state"] == "complete" else None,
        "settings": settings_of(search, trial.params),
        "reports": [[number, _finite(value)] for number, value in sorted(trial.intermediate_values.items())],
        **outcome,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def importances(search: Search, study: Any) -> dict[str, dict[str, Any]]:
    """How much each setting decides whether a trial is among the best, by PED-ANOVA (Watanabe et al., 2023,
    arXiv:2304.10255): once by the values at the end of the trials that came there, once by the first validation, which
    nearly all trials have.

    Returns:
        "end" and "first" -> {"trials": how many, "shares": setting -> share, all together 1}; those with fewer than
        FEWEST trials are left out.
    """
    states = import_optuna().trial.TrialState
    finished = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    values = {
        # Optuna gives a pruned trial its last report as value.
        "end": [(one, one.value) for one in finished if one.state == states.COMPLETE],
        "first": [(one, one.intermediate_values[1]) for one in finished if 1 in one.intermediate_values],
    }
    return {
        name: {"trials": len(pairs), "shares": _shares(pairs)}
        for name, pairs in values.items()
        if len(pairs) >= FEWEST and len(search.space) > 1
    }


def _shares(pairs: list[tuple[Any, float]]) -> dict[str, float]:
    optuna = import_optuna()
    study = optuna.create_study()
    largest = max(value for _, value in pairs if math.isfinite(value))
    for trial, value in pairs:
        value = value if math.isfinite(value) else largest
        study.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=value))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return {key: float(f"{share:.4g}") for key, share in found.items()}
