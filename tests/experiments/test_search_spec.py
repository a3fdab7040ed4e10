import sys

import pytest

from lightning_gpt.cli.experiment import _check
from lightning_gpt.experiments.search_run import check_space
from lightning_gpt.experiments.search_space import Choices, Range, checked_space
from lightning_gpt.experiments.search_spec import load_search
from lightning_gpt.experiments.search_study import build_pruner, build_sampler, import_optuna

RATE = "model.init_args.optimizer.init_args.lr"
BETAS = "model.init_args.optimizer.init_args.betas"
WIDTH = "model.init_args.config.n_embd"


def test_a_good_file(write_search):
    search = load_search(
        write_search(
            space={
                RATE: {"low": 1e-4, "high": 1, "log": True},
                WIDTH: {"low": 8, "high": 33, "step": 8},
                BETAS: {"choices": [[0.9, 0.95], [0.9, 0.99]]},
                "prepare.tokenizer": {"choices": ["byte", "char"]},
            },
            start=[{RATE: 0.01, WIDTH: 16, BETAS: [0.9, 0.99], "prepare.tokenizer": "char"}],
            sampler={"kind": "random", "seed": 3},
            confirm={"seeds": [5, 6]},
        )
    )
    assert search.space[RATE] == Range(1e-4, 1.0, log=True)
    assert search.space[WIDTH] == Range(8, 32, step=8, int=True)
    assert search.space[WIDTH].grid() == [8, 16, 24, 32]
    assert search.metric == "val/loss" and search.base.name == "trial" and search.base.chapter == "01_chapter"
    variant = search.experiment("trial_0003", search.start[0]).variants["trial_0003"]
    assert variant.overrides == {RATE: 0.01, WIDTH: 16, BETAS: [0.9, 0.99]}
    assert variant.prepare == {"tokenizer": "char"} and variant.seeds == (1,)


def test_default_start_is_what_the_configs_have(write_search):
    space = {WIDTH: {"low": 4, "high": 64, "int": True}, RATE: {"low": 1e-4, "high": 1, "log": True}}
    search = load_search(write_search(space=space, overrides={RATE: 0.02}, start=["default"]))
    assert search.start == [{WIDTH: 8, RATE: 0.02}]


def test_what_is_drawn_comes_back_as_it_was():
    space = checked_space(
        {"a": {"choices": [[0.9, 0.95], None, "x", {"k": 1}]}, "b": {"low": 0, "high": 0.3, "step": 0.1}}
    )
    choices, stepped = space["a"], space["b"]
    assert isinstance(choices, Choices)
    assert [choices.value(choices.drawn(one)) for one in choices.values] == [[0.9, 0.95], None, "x", {"k": 1}]
    assert stepped.grid() == [0.0, 0.1, 0.2, 0.3] and stepped.drawn(0.3) == 0.3
    with pytest.raises(ValueError, match=r"0.25 is not in"):
        stepped.drawn(0.25)


WRONG = {
    "field": ({"trails": 3}, "unknown field 'trails' .did you mean 'trials'"),
    "variants": ({"grid": {}}, "unknown field 'grid'"),
    "no trials": ({"trials": 0}, "trials=0 must be a whole number of at least 1"),
    "metric": ({"metric": "train/loss"}, "metric='train/loss' must be one of validation"),
    "space": ({"space": {}}, "must map at least one dotted setting"),
    "space group": ({"space": {"modle.x": {"low": 1, "high": 2}}}, "space: unknown setting 'modle.x'"),
    "model field": ({"space": {"model.init_args.config.n_layr": {"choices": [1]}}}, "no field 'n_layr' .did you mean"),
    "reserved": ({"space": {"trainer.max_steps": {"choices": [1]}}}, "trainer.max_steps cannot be set here"),
    "form": ({"space": {RATE: [1, 2]}}, r"must be \{low"),
    "form field": ({"space": {RATE: {"lo": 1, "high": 2}}}, "unknown field 'lo' .did you mean 'low'"),
    "no high": ({"space": {RATE: {"low": 1}}}, "high is missing"),
    "order": ({"space": {RATE: {"low": 2, "high": 1}}}, "low=2 must be below high=1"),
    "log of nothing": ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "low=0 must be above 0 with log"),
    "text": ({"space": {RATE: {"low": "a", "high": 1}}}, "low='a' must be a number"),
    "int": ({"space": {RATE: {"low": 0.5, "high": 1, "int": True}}}, "not all whole"),
    "log": ({"space": {RATE: {"low": 1, "high": 2, "log": 1}}}, "log=1 must be true or false"),
    "step": ({"space": {RATE: {"low": 0, "high": 1, "step": 2}}}, "step=2 must be above 0 and at most"),
    "step and log": ({"space": {RATE: {"low": 1, "high": 9, "step": 2, "log": True}}}, "cannot go together"),
    "choices": ({"space": {RATE: {"choices": []}}}, "choices=.. must be a list with at least one"),
    "choices twice": ({"space": {RATE: {"choices": [1, 1]}}}, "names one twice"),
    "both": ({"space": {RATE: {"choices": [1], "low": 1}}}, "either choices or low and high"),
    "sampler": ({"sampler": "tpee"}, "sampler='tpee' is unknown .did you mean 'tpe'"),
    "pruner": ({"pruner": {"kind": "ahsa"}}, "pruner='ahsa' is unknown .did you mean 'asha'"),
    "sampler seed": ({"sampler": {"kind": "tpe", "seed": -1}}, "sampler.seed=-1 must be"),
    "endless grid": ({"sampler": "grid"}, "has no end of values: give it choices or a step"),
    "start": ({"start": [{"lr": 1}]}, r"start\[0\]: lr is not in the space"),
    "start value": ({"start": [{RATE: 7}]}, r"start\[0\]: .*7 is not in \[0.0001, 0.1\], logarithmic"),
    "start form": ({"start": "default"}, "start='default' must be a list"),
    "default": ({"start": ["default"]}, "the configs do not set .*lr: write its value"),
    "starts": ({"start": [{}, {}, {}]}, "start has 3 trials, more than trials=2"),
    "confirm": ({"confirm": [1, 2]}, r"confirm=.* must be \{seeds"),
    "confirm one": ({"confirm": {"seeds": [3]}}, "at least two"),
    "confirm alone": ({"confirm": {"seeds": [3, 4]}}, "give `start: .default.`"),
    "confirm old": ({"confirm": {"seeds": [1, 4]}, "start": [{RATE: 0.01}]}, "chose the best trial already"),
    "confirm part": ({"confirm": {"seeds": [3, 4]}, "start": [{}]}, "must set the whole space, it lacks .*lr"),
    "seeds": ({"seeds": []}, "seeds=.. must be a list"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_errors_name_field_value_and_mend(write_search, changes, message):
    path = write_search(**changes)
    with pytest.raises(ValueError, match=message) as error:
        load_search(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_missing_field_is_named(write_search):
    with pytest.raises(ValueError, match="the field 'space' is missing"):
        load_search(write_search(drop=("space",)))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.init_args.optimizer.init_args.lrr": {"low": 1e-3, "high": 1e-2}}, "lrr.*did you mean 'lr'"),
        ({"trainer.gradient_clip_vall": {"choices": [1.0]}}, "did you mean .*gradient_clip_val"),
        ({"data.init_args.batch_size": {"low": 1, "high": 9}}, "batch_size.*int: true"),
    ],
)
def test_settings_that_training_does_not_have(write_search, space, message):
    search = load_search(write_search(space=space))
    with pytest.raises(ValueError, match=message):
        check_space(search, _check)


def test_settings_that_training_has(write_search):
    space = {RATE: {"low": 1e-4, "high": 1e-2}, BETAS: {"choices": [[0.9, 0.95], [0.9, 0.99]]}}
    check_space(load_search(write_search(space=space)), _check)


def test_options_of_sampler_and_pruner_are_optunas(write_search):
    search = load_search(write_search(sampler={"kind": "tpe", "n_startup": 3}, pruner={"kind": "asha", "reduction": 2}))
    with pytest.raises(ValueError, match=r"sampler=tpe has no option 'n_startup' .did you mean 'n_startup_trials'"):
        build_sampler(search)
    with pytest.raises(ValueError, match=r"pruner=asha has no option 'reduction' .did you mean 'reduction_factor'"):
        build_pruner(search)
    search = load_search(write_search(pruner={"kind": "asha", "reduction_factor": 1}))
    with pytest.raises(ValueError, match=r"pruner=asha: .*reduction_factor"):
        build_pruner(search)


@pytest.mark.parametrize("pruner", ["asha", "median", "percentile", "hyperband", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc", "gp"])
def test_every_kind_is_there(write_search, sampler, pruner):
    space = {RATE: {"choices": [1e-3, 1e-2, 1e-1]}}
    search = load_search(write_search(space=space, sampler=sampler, pruner=pruner, trials=9))
    assert search.trials == (3 if sampler == "grid" else 9)
    study = import_optuna().create_study(sampler=build_sampler(search), pruner=build_pruner(search))
    trial = study.ask({RATE: search.space[RATE].distribution()})
    trial.report(1.0, 1)
    assert trial.should_prune() is False
    assert search.space[RATE].value(trial.params[RATE]) in (1e-3, 1e-2, 1e-1)


def test_without_optuna(write_search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning_gpt\[search\]'"):
        import_optuna()


def test_without_the_package_of_a_sampler(write_search, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ValueError, match="sampler=cmaes needs `pip install cmaes`"):
        build_sampler(load_search(write_search(sampler="cmaes")))
