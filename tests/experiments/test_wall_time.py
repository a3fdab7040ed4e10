import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_gpt.cli.experiment import run_command
from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.budgets import budget_in_words
from lightning_gpt.experiments.cell_run import STATE_FILE
from lightning_gpt.experiments.plan import STEP_TIMES, plan_cells
from lightning_gpt.experiments.search_spec import load_search
from lightning_gpt.experiments.spec_checks import BUDGETS
from lightning_gpt.experiments.tables import wall_time_table, wall_time_warning
from lightning_gpt.experiments.wall_time import check_where, steps_that_fill

WIDTH = "model.init_args.config.n_embd"
LARGE = {WIDTH: 256, "data.init_args.batch_size": 16, "data.init_args.block_size": 16}
"""Thousands of times the arithmetic of the network of conftest.py."""
ROOT = Path("runs/experiments/01_chapter/trial")


@pytest.fixture
def write_timed(write_experiment):
    """write_timed(field=value, ...): a small and a large network, each with two and with four seconds."""

    def write(drop=("budget",), **changes):
        grid = {
            "size": {"small": {}, "large": LARGE},
            "time": {"two": {"budget.seconds": 2}, "four": {"budget.seconds": 4}},
        }
        return write_experiment(drop=["variants", *drop], **{"grid": grid, "validations": 1, **changes})

    return write


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Keeps measurements between tests: each is a training run."""
    return tmp_path_factory.mktemp("shelf") / "step_times"


@pytest.fixture
def measured(write_timed, shelf):
    """The directory of the measurements of write_timed's two networks."""
    if shelf.exists():
        shutil.copytree(shelf, ROOT / STEP_TIMES)
    else:
        plan_cells(load_experiment(write_timed()))
        shutil.copytree(ROOT / STEP_TIMES, shelf)
    return ROOT / STEP_TIMES


def written(place: Path) -> dict[Path, int]:
    """Measurements, with the times of their writing."""
    return {path: path.stat().st_mtime_ns for path in place.glob("*.json")}


def test_seconds_become_steps_once(measured, write_timed, capsys):
    capsys.readouterr()
    path, kept = write_timed(), written(measured)
    assert len(kept) == 2  # four variants: those of one network share a measurement
    cells = {cell.variant: cell for cell in plan_cells(load_experiment(path))}
    assert written(measured) == kept and not capsys.readouterr().err
    for size in ("small", "large"):
        two, four = cells[f"{size}-two"], cells[f"{size}-four"]
        assert two.step_seconds == four.step_seconds
        assert four.max_steps == pytest.approx(2 * two.max_steps, abs=1)
        assert two.seconds == pytest.approx(2, abs=two.step_seconds)
        assert two.settings["trainer"] == {"max_steps": two.max_steps, "val_check_interval": two.max_steps}
    assert cells["small-two"].max_steps > 2 * cells["large-two"].max_steps
    assert not list(ROOT.glob("*/seed_*"))  # all of this before a run


def test_unequal_seconds_are_refused(measured, write_timed, write_experiment):
    equal = {"equal": {"seconds": 0.5}}
    with pytest.raises(ValueError, match=r"trial.yaml: equal.seconds=0.5, but small-four has .* and small-two .* \(\+"):
        plan_cells(load_experiment(write_timed(**equal)))
    sizes = {"small": {}, "large": LARGE}
    alike = write_experiment(variants=sizes, budget={"seconds": 2}, validations=1, **equal)
    assert len(plan_cells(load_experiment(alike))) == 2
    # Equal steps of another budget are not equal seconds.
    path = write_experiment(variants=sizes, budget={"max_steps": 1000}, **equal)
    with pytest.raises(ValueError, match=r"equal.seconds=0.5, but large has [\d.]+ and small [\d.]+ \(\+"):
        plan_cells(load_experiment(path))
    assert not list(ROOT.glob("*/seed_*"))


def test_a_budget_below_one_step_is_refused_by_name(measured, write_experiment):
    path = write_experiment(budget={"seconds": 1e-7})
    with pytest.raises(ValueError, match=r"trial.yaml: budget.seconds=1e-07 is too small for one step of one: a step"):
        plan_cells(load_experiment(path))


def test_what_cannot_be_trusted_is_refused(measured, write_timed):
    experiment = load_experiment(write_timed())
    for file in written(measured):
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "machine": "an abacus"}))
    with pytest.raises(ValueError, match=r"turned into steps on an abacus; this is .* or delete .*.json to measure"):
        plan_cells(experiment)
    for file in written(measured):
        file.write_text("{")
    with pytest.raises(ValueError, match=r".json is damaged .*delete it"):
        plan_cells(experiment)


def test_a_killed_experiment_goes_on_with_the_steps_it_had(measured, write_experiment, tmp_path, capsys):
    kept = written(measured)
    path = write_experiment(budget={"seconds": 2}, validations=2)
    command = [sys.executable, "-m", "lightning_gpt", "experiment", "run", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    state = tmp_path / ROOT / "one" / "seed_1" / STATE_FILE
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(state.read_text())["status"] == "running"

    capsys.readouterr()
    run_command(str(path))
    assert written(measured) == kept and "ms a step" not in capsys.readouterr().err
    (cell,) = json.loads((tmp_path / "01_chapter/trial/results.json").read_text())["cells"]
    assert cell["attempts"] == 2
    assert cell["foretold_seconds"] == pytest.approx(cell["steps"] * cell["step_seconds"], rel=1e-4)
    assert cell["foretold_seconds"] == pytest.approx(2, rel=0.05)
    assert cell["training_seconds"] > 0
    report = (tmp_path / "01_chapter/trial/report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith(f"| `one` | {1000 * cell['step_seconds']:.4g} "))
    assert f"| {cell['steps']:,} | {cell['foretold_seconds']:.1f} | {cell['training_seconds']:.1f} |" in row
    assert "each run gets 2 s of training (without start and validations)" in report


def test_smoke_measures_nothing(write_timed, capsys):
    experiment = load_experiment(write_timed(equal={"seconds": 0.05}))
    assert {(cell.max_steps, cell.seconds) for cell in plan_cells(experiment, smoke=True)} == {(2, None)}
    assert not capsys.readouterr().err and not list(Path("runs").rglob("*.json"))


def test_steps_fill_the_budget():
    assert "seconds" in BUDGETS
    assert steps_that_fill(60, 0.1, 4, "a") == 600
    assert steps_that_fill(61, 0.1, 4, "a") == 608  # the nearest that four validations divide
    with pytest.raises(ValueError, match=r"budget.seconds=0.5 is too small for one step of wide: a step takes 0.7 s"):
        steps_that_fill(0.5, 0.7, 4, "wide")
    with pytest.raises(ValueError, match=r"pays for 5.0 steps of wide here, which 4 validations cannot divide"):
        steps_that_fill(5, 1, 4, "wide")


def timed_results(**trained: float) -> dict:
    """Variants that were foretold two seconds and took these."""
    cells = [
        {"variant": name, "status": "done", "training_seconds": seconds, "foretold_seconds": 2.0, "step_seconds": 0.1,
         "steps": 20}
        for name, seconds in trained.items()
    ]  # fmt: skip
    return {"variants": dict.fromkeys(trained), "cells": cells}


def test_the_report_says_so_where_the_time_was_not_equal():
    assert wall_time_warning(timed_results(a=2.6, b=2.5)) == "", "slower than foretold, but alike"
    warning = wall_time_warning(timed_results(a=2.0, b=3.0))
    assert "`a` took 1.00 times what was foretold, `b` 1.50 times" in warning
    assert "| `b` | 100 | 20 | 2.0 | 3.0 | 3.0 to 3.0 | +50.0% |" in wall_time_table(timed_results(a=2.0, b=3.0))
    untimed = {"variants": {"a": {}}, "cells": [{"variant": "a", "status": "done"}]}
    assert wall_time_warning(untimed) == wall_time_table(untimed) == ""


def test_seconds_belong_to_one_quiet_machine(write_experiment):
    timed = load_experiment(write_experiment(budget={"seconds": 60}))
    assert budget_in_words(timed) == "60 s of training (without start and validations)"
    check_where(timed, "local", 1)
    with pytest.raises(ValueError, match="engine=ray: seconds of a step are measured on this machine"):
        check_where(timed, "ray", 1)
    with pytest.raises(ValueError, match="parallel=2: runs side by side slow each other"):
        run_command(str(timed.path), parallel=2)
    check_where(load_experiment(write_experiment()), "ray", 8)


def test_a_search_has_no_budget_of_seconds(write_search):
    with pytest.raises(ValueError, match=r"budget\.seconds would measure each trial's step anew"):
        load_search(write_search(budget={"seconds": 60}))
