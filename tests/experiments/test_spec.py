import pytest

from lightning_gpt.experiments import load_experiment


def test_a_good_file(write_experiment):
    path = write_experiment(
        variants={"short": {}, "long": {"data.init_args.block_size": 16, "prepare.tokenizer": "char"}},
        overrides={"model.init_args.config.n_embd": 16},
        metrics=["val/bits_per_byte", "val/loss"],
    )
    experiment = load_experiment(path)
    assert (experiment.chapter, experiment.name, experiment.baseline) == ("01_chapter", "trial", "short")
    assert experiment.variants["long"].overrides == {"data.init_args.block_size": 16}
    assert experiment.variants["long"].prepare == {"tokenizer": "char"}
    assert experiment.curve == "val/bits_per_byte"


WRONG = {
    "unknown field": ({"varients": {}}, "unknown field 'varients' .did you mean 'variants'"),
    "no config": ({"configs": ["bse.yaml"]}, "configs: bse.yaml does not exist"),
    "no configs": ({"configs": []}, "configs=.. must be a list with at least one"),
    "no seed": ({"seeds": []}, "seeds=.. must be a list with at least one"),
    "seed twice": ({"seeds": [1, 1]}, "names one twice"),
    "seed below 0": ({"seeds": [-1]}, "at least 0"),
    "metric": ({"metrics": ["val/los"]}, "metric 'val/los' is unknown .did you mean 'val/loss'"),
    "curve": ({"curve": "loss"}, "metric 'loss' is unknown"),
    "no variant": ({"variants": {}}, "at least one name"),
    "variant name": ({"variants": {"a/b": {}}}, "variant 'a/b' must be letters"),
    "group": ({"variants": {"a": {"modle.x": 1}}}, "variants.a: unknown setting 'modle.x'"),
    "model field": ({"variants": {"a": {"model.init_args.config.n_layr": 1}}}, "no field 'n_layr' .did you mean 'n_la"),
    "reserved": ({"overrides": {"trainer.max_steps": 1}}, "overrides: trainer.max_steps cannot be set here: give `bu"),
    "reserved group": ({"overrides": {"run.name": "x"}}, "run.name cannot be set here"),
    "prepare setting": ({"prepare": {"source": "text.txt", "tokeniser": "char"}}, "did you mean 'tokenizer'"),
    "no source": ({"prepare": {"tokenizer": "char"}}, "prepare.source is missing"),
    "corpus without prepare": ({"prepare": {}, "variants": {"a": {"prepare.tokenizer": "char"}}}, "no `prepare`"),
    "budget kind": ({"budget": {"steps": 4}}, "budget: unknown kind 'steps' .did you mean 'max_steps'"),
    "two budgets": ({"budget": {"max_steps": 4, "tokens": 3}}, "must be one of max_steps"),
    "budget amount": ({"budget": {"tokens": -3}}, "budget.tokens=-3 must be a positive"),
    "validations": ({"validations": 0}, "validations=0 must be at least 1"),
    "tolerance": ({"identical_within": 0}, "identical_within=0 must be a positive"),
    "equal kind": ({"equal": {"parameter": 0.1}}, "equal: unknown kind 'parameter' .did you mean 'parameters'"),
    "equal share": ({"equal": {"parameters": 2}}, "equal.parameters=2 must be a share"),
    "equal": ({"equal": "parameters"}, "equal='parameters' must map parameters or training_flops"),
    "against": ({"against": "last"}, "against=.last. is unknown: use baseline or previous"),
    "question": ({"question": ""}, "question is empty"),
    "one seed": (
        {"variants": {"a": {}, "b": {}}, "against": "baseline"},
        "seeds=.1.: a comparison needs at",
    ),
    "nothing to run": ({"variants": None}, "give `variants` or a `grid`"),
    "grid": ({"grid": {"size": []}}, "must map factors to levels"),
    "grid level": ({"grid": {"size": {"a b": {}}}}, "grid.size: level 'a b' must be letters"),
    "grid setting": ({"grid": {"size": {"a": {"modle.x": 1}}}}, "grid.a: unknown setting 'modle.x'"),
    "named twice": ({"grid": {"size": {"one": {}}}}, "variant 'one' is named twice"),
    "more seeds": ({"more_seeds": {"on": [2]}}, "no variant matches 'on' .did you mean 'one'"),
    "more seeds twice": ({"more_seeds": {"one": [1]}}, "more_seeds.one=.1, 1. names one twice"),
    "own budget": ({"variants": {"a": {"budget.step": 3}}}, "variants.a: budget: unknown kind 'step'"),
    "smoke": ({"smoke": {"modle.x": 1}}, "smoke: unknown setting 'modle.x'"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_mistakes_are_named_in_one_line(write_experiment, changes, message):
    path = write_experiment(**changes)
    with pytest.raises(ValueError, match=message) as error:
        load_experiment(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_missing_field(write_experiment):
    with pytest.raises(ValueError, match="the field 'seeds' is missing"):
        load_experiment(write_experiment(drop=["seeds"]))


def test_a_grid_is_every_combination_with_its_own_budgets_and_seeds(write_experiment):
    grid = {
        "width": {8: {"model.init_args.config.n_embd": 8}, 16: {"model.init_args.config.n_embd": 16}},
        "tokens": {"few": {"budget.tokens": 64}, "many": {"budget.tokens": 128}},
    }
    experiment = load_experiment(write_experiment(drop=["budget", "variants"], grid=grid, more_seeds={"16-*": [2]}))
    assert list(experiment.variants) == ["8-few", "8-many", "16-few", "16-many"]
    assert experiment.grid == {"width": ["8", "16"], "tokens": ["few", "many"]}
    last = experiment.variants["16-many"]
    assert (last.overrides, last.budget, last.seeds) == (
        {"model.init_args.config.n_embd": 16},
        {"tokens": 128},
        (1, 2),
    )
    assert experiment.variants["8-few"].seeds == (1,)
    with pytest.raises(ValueError, match="'budget' is missing, and variant one has none"):
        load_experiment(write_experiment(drop=["budget"], grid=grid))


@pytest.mark.parametrize("reason", [{"against": "none"}, {"identical_within": 1e-3}])
def test_one_seed_is_enough_where_nothing_is_compared(write_experiment, reason):
    assert not load_experiment(write_experiment(variants={"a": {}, "b": {}}, **reason)).compares
