import json

import pytest

from lightning_gpt.cli.experiment import report_command, run_command
from lightning_gpt.experiments import collect_results, load_experiment, run_cells, write_report
from lightning_gpt.experiments.cell_run import STATE_FILE, CellState, metrics_of, read_state, write_state
from lightning_gpt.experiments.plan import plan_cells
from lightning_gpt.experiments.results import save_pictures


def finish(cell, losses, status="done"):
    """What a finished process leaves behind."""
    run = cell.directory / "version_0"
    run.mkdir(parents=True)
    rows = [{"step": 2 * (n + 1), "val/loss": loss} for n, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_state(cell, CellState(cell.config_hash, status, seconds=1.0, peak_memory_bytes=1))


def test_one_variant_through_a_real_process(write_experiment, tmp_path, capsys):
    path = write_experiment()
    run_command(str(path))
    assert "cell 1/1  one seed 1: val/loss 5." in capsys.readouterr().err
    out = tmp_path / "01_chapter/trial"
    results = json.loads((out / "results.json").read_text())
    (cell,) = results["cells"]
    assert (cell["status"], cell["steps"], cell["tokens"]) == ("done", 4, 64)
    assert 5 < cell["final"]["val/loss"] < 6  # ln 256 = 5.55, after hardly any learning
    assert cell["peak_memory_bytes"] > 2**26
    assert results["comparisons"] == {"val/loss": {}}
    assert "# Does it matter?" in (out / "report.md").read_text()
    board = tmp_path / "runs/experiments/01_chapter/trial"
    assert list(board.glob("*tfevents*")) and list((board / "one/seed_1/version_0").glob("*tfevents*"))

    state = tmp_path / "runs/experiments/01_chapter/trial/one/seed_1" / STATE_FILE
    before = state.stat().st_mtime_ns
    run_command(str(path))
    assert "1 of 1 cells are finished already" in capsys.readouterr().err
    assert state.stat().st_mtime_ns == before

    (out / "report.md").unlink()
    report_command(str(path))
    assert "# Does it matter?" in (out / "report.md").read_text()


def test_smoke_runs_two_steps_of_every_variant_in_this_process(write_experiment, tmp_path, capsys):
    variants = {"a": {}, "b": {"model.init_args.config.norm": "rmsnorm"}}
    run_command(str(write_experiment(variants=variants, seeds=[3, 4])), smoke=True)
    root = tmp_path / "runs/experiments/smoke/01_chapter/trial"
    results = json.loads((root / "report" / "results.json").read_text())
    assert [(cell["variant"], cell["seed"], cell["steps"]) for cell in results["cells"]] == [("a", 3, 2), ("b", 3, 2)]
    assert "run directory" in (root / "b" / "seed_3" / "fit.log").read_text()
    assert "run directory" not in capsys.readouterr().err
    assert not (tmp_path / "01_chapter" / "trial").exists()


WRONG_SETTINGS = {
    "trainer.max_stepz": "variants.one: .*does not accept option 'trainer.max_stepz' - did you mean",
    "model.init_args.compil": "variants.one: model: Option 'compil' is not accepted - did you mean 'compile'",
    "data.init_args.batchsize": "variants.one: data: Option 'batchsize' is not accepted - did you mean 'batch_size'",
    "model.init_args.config.moe.expertz": "config.moe: Option 'expertz' is not accepted - did you mean 'experts'",
}


@pytest.mark.parametrize("setting, message", WRONG_SETTINGS.items(), ids=WRONG_SETTINGS)
def test_a_setting_that_training_lacks_is_named_before_anything_runs(write_experiment, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        run_command(str(write_experiment(variants={"one": {setting: 3}})))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


def test_finished_cells_count_only_under_their_settings(write_experiment):
    experiment = load_experiment(write_experiment(seeds=[1, 2]))
    first, second = plan_cells(experiment)
    finish(first, [3.0, 2.5])
    assert read_state(first).finished
    assert read_state(second) is None
    assert [row["val/loss"] for row in metrics_of(first)] == [3.0, 2.5]
    with pytest.raises(ValueError, match="one seed 2 is not finished"):
        collect_results(experiment, [first, second], "command")
    changed = plan_cells(load_experiment(write_experiment(overrides={"data.init_args.batch_size": 3})))[0]
    assert changed.directory == first.directory
    assert read_state(changed) is None


def test_pictures_of_the_first_seed_are_shown(write_experiment, tmp_path):
    experiment = load_experiment(write_experiment(variants={"a": {}, "b": {}}, seeds=[1, 2]))
    cells = plan_cells(experiment)
    for cell in cells:
        finish(cell, [3.0])
        if cell.variant == "b":
            (cell.directory / "version_0" / "expert_load.png").write_text(f"seed {cell.seed}")
    save_pictures(cells, tmp_path)
    assert (tmp_path / "expert_load_b.png").read_text() == "seed 1"
    text = write_report(collect_results(experiment, cells, "command"), tmp_path).read_text()
    assert "](expert_load_b.png)" in text and "expert_load_a" not in text


def test_results_have_final_best_and_curve(write_experiment):
    experiment = load_experiment(write_experiment(seeds=[1, 2]))
    cells = plan_cells(experiment)
    finish(cells[0], [2.5, 2.75])
    finish(cells[1], [3.0], status="diverged")
    results = collect_results(experiment, cells, "command")
    good, sick = results["cells"]
    assert (good["final"], good["best"]) == ({"val/loss": 2.75}, {"val/loss": 2.5})
    assert good["points"] == [[2, 2.5, None], [4, 2.75, None]]
    assert (sick["final"], sick["points"]) == ({}, [[2, 3.0, None]])
    assert results["corpora"]["one"]["scheme"] == "byte"
    run_cells(cells, "val/loss")  # nothing is left to do


def test_a_failing_cell_stops_with_its_last_line(write_experiment):
    cells = plan_cells(load_experiment(write_experiment(variants={"one": {"trainer.max_stepz": 3}})))
    with pytest.raises(RuntimeError, match=r"one seed 1 failed with status 2: .*max_stepz.*fit.log"):
        run_cells(cells, "val/loss")
    assert read_state(cells[0]).status == "running"  # tried again by the next call


def test_a_metric_that_is_not_logged_is_told_after_the_first_run(write_experiment):
    cells = plan_cells(load_experiment(write_experiment(seeds=[1, 2], metrics=["val/accuracy"])))
    finish(cells[0], [3.0])
    with pytest.raises(ValueError, match="one seed 1 has ended and logged no val/accuracy: it logged val/loss"):
        run_cells(cells, "val/accuracy")
    assert read_state(cells[1]) is None


def test_a_foreign_directory_is_left_alone(write_experiment):
    (cell,) = plan_cells(load_experiment(write_experiment()))
    cell.directory.mkdir(parents=True)
    (cell.directory / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a run of an experiment"):
        run_cells([cell], "val/loss")
    assert (cell.directory / "thesis.txt").exists()


def test_divergence_is_a_result(write_experiment):
    wild = {"class_path": "lightning_gpt.optim.SGD", "init_args": {"lr": 1e30}}
    path = write_experiment(
        variants={"wild": {"model.init_args.optimizer": wild, "trainer.gradient_clip_val": None}},
        budget={"max_steps": 8},
        validations=1,
    )
    experiment = load_experiment(path)
    cells = plan_cells(experiment)
    run_cells(cells, "val/loss")
    assert read_state(cells[0]).status == "diverged"
    (cell,) = collect_results(experiment, cells, "command")["cells"]
    assert cell["final"] == {} and "in optimizer step" in cell["message"]
