"""Experiments that measure: a function of settings and seed instead of a training."""

import json
import sys
from pathlib import Path

import pytest

from lightning_gpt.cli.experiment import measure_command, run_command
from lightning_gpt.experiments import collect_results, load_experiment, run_cells, write_report
from lightning_gpt.experiments.engines import InlineEngine
from lightning_gpt.experiments.plan import plan_cells

OWN = """
def once(factor, file="", shift=0.0, seed=0):
    return {"own/value": factor * 10.0 + seed + shift, "own/bytes": 4.0 * factor}

def curve(factor, steps=3, seed=0):
    for n in range(1, steps + 1):
        yield {"step": 2**n, "own/value": factor * 2.0**n + seed}

def endless(seed):
    return {"own/value": float("inf")}

def careless(): pass
"""


@pytest.fixture
def write_measurement(write_experiment, tmp_path, monkeypatch):
    """write_measurement(field=value, ...): an experiment that measures with functions of own_measures.py."""
    (tmp_path / "own_measures.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_measures", raising=False)

    def write(drop=(), **changes):
        settings = {
            "measure": "own_measures.once",
            "variants": {"one": {"factor": 1}, "two": {"factor": 2}},
            "seeds": [1, 2, 3],
            "metrics": ["own/value", "own/bytes"],
            "better": {"own/value": "larger", "own/bytes": "smaller"},
            "against": "baseline",
            **changes,
        }
        return write_experiment(drop=("configs", "prepare", "budget", "validations", *drop), **settings)

    return write


def test_a_cell_is_a_process_and_is_measured_once(write_measurement, tmp_path, capsys):
    path = write_measurement(variants={"two": {"factor": 2}}, seeds=[3], against="none")
    run_command(str(path))
    assert "cell 1/1  two seed 3: own/value 23.0000" in capsys.readouterr().err
    (cell,) = json.loads((tmp_path / "01_chapter/trial/results.json").read_text())["cells"]
    assert cell["final"] == {"own/value": 23.0, "own/bytes": 8.0} and cell["peak_memory_bytes"] > 2**24
    run_command(str(path))
    assert "1 of 1 cells are finished already" in capsys.readouterr().err
    measure_command(str(tmp_path / "runs/experiments/01_chapter/trial/two/seed_3/config.yaml"))
    assert "own/value 23" in capsys.readouterr().out


def test_report_of_measurements(write_measurement, tmp_path):
    path = write_measurement(seeds=[1, 2], scatter=["own/bytes", "own/value"], overrides={"shift": 0.5})
    experiment = load_experiment(path)
    cells = plan_cells(experiment)
    run_cells(cells, "own/value", InlineEngine(lambda arguments: measure_command(arguments[-1])))
    results = collect_results(experiment, cells, "the command")
    finals = {(cell["variant"], cell["seed"]): cell["final"]["own/value"] for cell in results["cells"]}
    assert finals == {("one", 1): 11.5, ("one", 2): 12.5, ("two", 1): 21.5, ("two", 2): 22.5}
    report = write_report(results, tmp_path).read_text()
    assert "| `two` | 22.00 ± 6.35 | 8.000 |" in report
    assert "`two`: better (+10.0000 ± 0.0000, p < 0.0001)" in report
    assert "measured by `own_measures.once`; seeds 1, 2" in report and "own/value over own/bytes" in report
    assert "training" not in report.partition("## Set-up")[0]
    assert (tmp_path / "scatter.png").stat().st_size > 1000 and not (tmp_path / "curves.png").exists()


def test_rows_become_a_curve(write_measurement, tmp_path):
    path = write_measurement(
        measure="own_measures.curve", axis="tokens read", metrics=["own/value"], better={"own/value": "larger"}
    )
    run_command(str(path), smoke=True)
    out = tmp_path / "runs/experiments/smoke/01_chapter/trial/report"
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert [cell["points"] for cell in cells] == [
        [[2, 3.0, None], [4, 5.0, None], [8, 9.0, None]],
        [[2, 5.0, None], [4, 9.0, None], [8, 17.0, None]],
    ]
    assert "own/value over tokens read" in (out / "report.md").read_text()
    assert (out / "curves.png").exists()


def test_other_settings_or_files_are_other_cells(write_measurement, tmp_path):
    (tmp_path / "text").write_text("a")
    path = write_measurement(overrides={"file": "text"})
    first = {cell.config_hash for cell in plan_cells(load_experiment(path))}
    assert len(first) == 6
    assert {cell.config_hash for cell in plan_cells(load_experiment(path))} == first
    (file,) = plan_cells(load_experiment(path))[0].files
    assert (file.setting, file.bytes) == ("file", 1)
    (tmp_path / "text").write_text("b")
    second = {cell.config_hash for cell in plan_cells(load_experiment(path))}
    assert not second & first
    smoke = plan_cells(load_experiment(write_measurement(smoke={"shift": 1.0})), smoke=True)
    assert [cell.settings["settings"] for cell in smoke] == [{"factor": 1, "shift": 1.0}, {"factor": 2, "shift": 1.0}]


def test_a_value_that_is_no_number_is_told(write_measurement):
    path = write_measurement(
        measure="own_measures.endless",
        variants={"one": {}},
        seeds=[1],
        against="none",
        better={"own/value": "larger"},
        metrics=["own/value"],
    )
    with pytest.raises(ValueError, match="endless: own/value is inf, which is no finite number"):
        run_command(str(path), smoke=True)


WRONG = {
    "unknown module": ({"measure": "nowhere.x"}, "measure='nowhere.x' cannot be imported"),
    "unknown function": ({"measure": "own_measures.onc"}, "has no function 'onc' .did you mean 'once'"),
    "no seed": ({"measure": "own_measures.careless"}, "takes no seed"),
    "unknown setting": ({"variants": {"one": {"factr": 1}}}, "once has no setting 'factr' .did you mean 'factor'"),
    "seed": ({"overrides": {"seed": 1}}, "overrides: seed cannot be set here: give `seeds`"),
    "lacking": ({"variants": {"one": {}}}, "variants.one: once needs the setting 'factor'"),
    "of training": ({"budget": {"max_steps": 1}}, "budget is of trainings"),
    "scatter": ({"scatter": ["own/value", "own/else"]}, "must be two of the metrics"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_bad_input(write_measurement, changes, message):
    path = write_measurement(**changes)
    if "budget" in changes:
        path.write_text(path.read_text() + "budget: {max_steps: 4}\n")
    with pytest.raises(ValueError, match=message):
        load_experiment(Path(path))


def test_what_trains_still_needs_its_configuration(write_experiment):
    with pytest.raises(ValueError, match="the field 'configs' is missing"):
        load_experiment(write_experiment(drop=("configs",)))
