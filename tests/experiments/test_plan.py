from dataclasses import replace

import pytest
import yaml

from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.budgets import budget_in_words
from lightning_gpt.experiments.plan import plan_cells
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import parameters, training_flops_per_token


def cells_of(path, **kwargs):
    return plan_cells(load_experiment(path), **kwargs)


def test_cells_go_seed_by_seed_into_their_own_directories(write_experiment):
    path = write_experiment(variants={"a": {}, "b": {"data.init_args.block_size": 4}}, seeds=[3, 5])
    cells = cells_of(path)
    assert [cell.directory.as_posix() for cell in cells] == [
        f"runs/experiments/01_chapter/trial/{name}/seed_{seed}" for seed in (3, 5) for name in "ab"
    ]
    settings = cells[1].settings
    assert settings["run"]["dir"] == "runs/experiments/01_chapter/trial/b"
    assert settings["run"]["name"] == "seed_3"
    assert settings["seed_everything"] == 3
    assert settings["trainer"] == {"max_steps": 4, "val_check_interval": 2}
    assert CorpusMeta.load(settings["data"]["init_args"]["data_dir"]).tokenizer.scheme == "byte"


def test_hash_changes_with_everything_that_decides_and_nothing_else(write_experiment, tmp_path):
    variants = {"a": {"data.init_args.batch_size": 2}}
    first = cells_of(write_experiment(variants=variants))[0].config_hash
    same = {"question": "Said otherwise?", "expectation": "x", "metrics": ["train/loss"], "seeds": [1, 2]}
    assert cells_of(write_experiment(variants=variants, **same))[0].config_hash == first
    different = [
        cells_of(write_experiment(variants={"a": {"data.init_args.batch_size": 3}}))[0],
        cells_of(write_experiment(variants={"a": {"data.init_args.batch_size": 2, "prepare.tokenizer": "char"}}))[0],
        cells_of(write_experiment(variants=variants, seeds=[2]))[0],
        cells_of(write_experiment(variants=variants, budget={"max_steps": 6}))[0],
        cells_of(write_experiment(variants=variants), smoke=True)[0],
    ]
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["model"]["init_args"]["config"]["n_layer"] = 2
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    different.append(cells_of(write_experiment(variants=variants))[0])
    hashes = [first, *(cell.config_hash for cell in different)]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "budget, exact",
    [
        ({"tokens": 3200}, 3200 / 16),
        ({"bytes": 3200}, 3200 / 16),
        ({"training_flops": 2e8}, 2e8 / 16 / training_flops_per_token(GPTConfig(256, 8, 1, 1, 8), 8)),
    ],
)
def test_budgets_pay_for_steps(write_experiment, budget, exact):
    (cell,) = cells_of(write_experiment(budget=budget))
    assert cell.max_steps % 2 == 0
    assert cell.max_steps == pytest.approx(exact, rel=0.02)


def test_equal_flops_mean_fewer_steps_for_a_larger_head(write_experiment):
    variants = {"char": {"prepare.tokenizer": "char"}, "byte": {}}
    char, byte = cells_of(write_experiment(variants=variants, budget={"training_flops": 1e7}))
    assert char.max_steps > 2 * byte.max_steps
    spent = [cell.max_steps * cell.tokens_per_step * cell.flops_per_token for cell in (char, byte)]
    assert spent == pytest.approx([1e7, 1e7], rel=0.02)


def test_parameters_are_counted_with_the_corpus_vocabulary(write_experiment):
    moe = {"model.init_args.config.moe": {"experts": 4, "top_k": 1}}
    dense, sparse = cells_of(write_experiment(variants={"dense": {}, "sparse": moe}))
    config = GPTConfig(256, 8, 1, 1, 8)
    assert dense.parameters == dense.active_parameters == parameters(config)
    assert sparse.parameters > sparse.active_parameters > 0.9 * dense.parameters


def test_variants_that_are_not_equal_are_refused_before_anything_runs(write_experiment):
    wide = {"model.init_args.config.ffn_hidden": 64}
    variants = {"a": {}, "b": {"model.init_args.config.norm": "rmsnorm"}, "wide": wide}
    assert len(cells_of(write_experiment(variants=variants, equal={"parameters": 0.9}))) == 3
    for kind in ("parameters", "training_flops"):
        with pytest.raises(ValueError, match=rf"equal.{kind}=0.01, but wide has [\d,.e+]+ and a [\d,.e+]+ \(\+"):
            cells_of(write_experiment(variants=variants, equal={kind: 0.01}))
    with pytest.raises(ValueError, match=r"equal.training_flops cannot be checked"):
        unknown = {"trainer.devices": "auto"}
        cells_of(write_experiment(variants=variants, overrides=unknown, equal={"training_flops": 0.9}))


def test_accumulation_counts_into_a_step(write_experiment):
    variants = {"a": {}, "b": {"data.init_args.batch_size": 1, "trainer.accumulate_grad_batches": 2}}
    a, b = cells_of(write_experiment(variants=variants, budget={"tokens": 1600}))
    assert (a.tokens_per_step, a.max_steps) == (b.tokens_per_step, b.max_steps) == (16, 100)


def test_budgets_that_cannot_be_met(write_experiment):
    with pytest.raises(ValueError, match=r"budget.max_steps=5 is no multiple of validations=2.*use 4"):
        cells_of(write_experiment(budget={"max_steps": 5}))
    with pytest.raises(ValueError, match=r"is too small for one step of one: a step takes"):
        cells_of(write_experiment(budget={"tokens": 10}))
    with pytest.raises(ValueError, match=r"needs trainer.devices as a number"):
        cells_of(write_experiment(budget={"tokens": 3200}, overrides={"trainer.devices": "auto"}))
    with pytest.raises(ValueError, match="no corpus"):
        cells_of(write_experiment(drop=["prepare"]))


def test_budget_in_words(write_experiment):
    experiment = load_experiment(write_experiment())
    assert budget_in_words(experiment) == "4 optimizer steps"
    flops = replace(experiment, budget={"training_flops": 2.4e12})
    assert budget_in_words(flops) == "2.4e12 training FLOPs (analytic, head included)"


def test_the_grid_runs_each_variant_as_long_and_as_often_as_it_says(write_experiment):
    grid = {
        "width": {8: {"model.init_args.config.n_embd": 8}, 16: {"model.init_args.config.n_embd": 16}},
        "tokens": {"few": {"budget.tokens": 64}, "many": {"budget.tokens": 128}},
    }
    path = write_experiment(drop=["budget", "variants"], grid=grid, more_seeds={"8-few": [2, 7]})
    cells = cells_of(path)
    assert [(cell.variant, cell.seed, cell.max_steps) for cell in cells] == [
        ("8-few", 1, 4),
        ("8-many", 1, 8),
        ("16-few", 1, 4),
        ("16-many", 1, 8),
        ("8-few", 2, 4),
        ("8-few", 7, 4),
    ]
    assert [cell.variant for cell in plan_cells(load_experiment(path), smoke=True)] == [c.variant for c in cells[:4]]
    assert budget_in_words(load_experiment(path)) == "a budget of its own (64 tokens, 128 tokens)"


def test_smoke_has_settings_of_its_own(write_experiment):
    path = write_experiment(smoke={"prepare.tokenizer": "char", "model.init_args.config.n_embd": 4})
    (cell,) = plan_cells(load_experiment(path), smoke=True)
    assert "char" in cell.data_dir and cell.settings["model"]["init_args"]["config"]["n_embd"] == 4
    assert "byte" in cells_of(path)[0].data_dir


def test_variants_of_unequal_tokens_are_refused(write_experiment):
    variants = {"a": {}, "b": {"data.init_args.batch_size": 4}}
    assert len(cells_of(write_experiment(variants=variants, budget={"tokens": 640}, equal={"tokens": 0}))) == 2
    with pytest.raises(ValueError, match=r"equal.tokens=0, but b has 128 and a 64"):
        cells_of(write_experiment(variants=variants, equal={"tokens": 0}))
