import json

import pytest

from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.plan import budget_in_words, plan_cells
from lightning_gpt.experiments.wall_time import steps_within
from lightning_gpt.planning.calibration import Calibration

WIDE = {"model.init_args.config.n_embd": 512, "model.init_args.config.n_layer": 4, "data.init_args.batch_size": 16}


def test_seconds_pay_for_fewer_steps_of_a_slower_network_and_are_measured_once(write_experiment):
    path = write_experiment(variants={"small": {}, "wide": WIDE}, budget={"seconds": 4}, seeds=[1, 2])
    cells = plan_cells(load_experiment(path))
    steps = {cell.variant: cell.max_steps for cell in cells}
    assert len({(cell.variant, cell.max_steps) for cell in cells}) == 2  # the same for every seed
    assert steps["wide"] * 3 < steps["small"] and all(n % 2 == 0 for n in steps.values())
    assert all(2 < cell.seconds <= 4 for cell in cells)
    kept = sorted(path.parent.parent.glob("runs/experiments/01_chapter/trial/calibrations/*.json"))
    assert [file.name.split("_")[0] for file in kept] == ["small", "wide"]
    # What was measured is kept: a second reading has the same steps, and runs are the same ones.
    again = plan_cells(load_experiment(path))
    assert [cell.config_hash for cell in again] == [cell.config_hash for cell in cells]
    # Two steps of each take unequally long, and that is refused, but not where nothing is measured.
    uneven = write_experiment(variants={"small": {}, "wide": WIDE}, equal={"seconds": 0.2})
    with pytest.raises(ValueError, match=r"equal.seconds=0.2, but wide has .* and small"):
        plan_cells(load_experiment(uneven))
    assert len(plan_cells(load_experiment(uneven), smoke=True)) == 2
    path = write_experiment(variants={"small": {}, "wide": WIDE}, budget={"seconds": 4}, seeds=[1, 2])
    # A calibration that says otherwise decides: it is read, not made again.
    content = json.loads(kept[0].read_text()) | {"step_seconds": 1.0, "validation_seconds": 0.0}
    kept[0].write_text(json.dumps(content))
    assert plan_cells(load_experiment(path))[0].max_steps == 4
    assert budget_in_words(load_experiment(path)).startswith("4 seconds of training and validation")


def test_a_budget_too_small_for_a_step_and_a_run_that_fails_are_named(write_experiment):
    found = Calibration(1.0, step_seconds=0.5, validation_seconds=2.0, tokens_per_second=1.0, steps=40)
    assert steps_within(10.0, found, validations=2) == 12
    with pytest.raises(ValueError, match=r"2 step\(s\) with a validation each take about 5 s"):
        steps_within(4.0, found, validations=2)
    broken = {"data.init_args.batch_size": 0}
    path = write_experiment(variants={"one": broken}, budget={"seconds": 4})
    with pytest.raises(ValueError, match=r"variants.one: the calibration run failed: .*batch_size=0"):
        plan_cells(load_experiment(path))
