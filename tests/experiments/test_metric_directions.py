"""Metrics of which more is better: verdicts, ranks and seeds follow."""

import json

import pytest

from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.comparisons import comparisons_json
from lightning_gpt.experiments.fewer_seeds import draw_fewer_seeds, fewer_seeds_rows
from lightning_gpt.experiments.metrics import loss_unit, unit_of
from lightning_gpt.experiments.report import conclusion, report_text
from lightning_gpt.experiments.search_spec import load_search
from lightning_gpt.experiments.statistics import compare

VALUES = {"base": [0.60, 0.62, 0.61, 0.63], "up": [0.70, 0.73, 0.71, 0.72], "down": [0.50, 0.51, 0.52, 0.51]}


def results(metric, **changes):
    """As results.json has them; without the field `better` it is older than that."""
    cells = [
        {
            "variant": name, "seed": seed, "status": "done", "final": {metric: value}, "steps": 4, "tokens": None,
            "training_flops": None, "flops_per_step": None, "tokens_per_second": None, "seconds": 1.0,
            "peak_memory_bytes": None, "attempts": 1, "points": [[4, value]],
        }
        for name, values in VALUES.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return {
        "question": "Does it matter?", "expectation": "", "notes": "", "command": "", "configs": [], "overrides": {},
        "budget": "4 optimizer steps", "variants": {name: {} for name in VALUES}, "metrics": [metric],
        "curve": metric, "identical_within": None, "cells": cells, "corpora": {}, "versions": {"python": "3.12"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpus": []}, **changes,
    }  # fmt: skip


def test_verdicts_and_ranks_follow_the_direction():
    larger = results("val/accuracy", better={"val/accuracy": "larger"}, loss_unit="nats per pair")
    text = conclusion(larger)
    assert "`up`: better (+0.1000 " in text and "`down`: worse (-0.1050 " in text
    assert "Highest mean: `up`, 0.7150." in text
    assert "ends at 0.6150 ± 0.0205 (val/accuracy, n = 4)" in text and "nats" not in text
    assert comparisons_json(larger)["val/accuracy"]["up"]["verdict"] == "better"
    old = conclusion(results("val/loss"))
    assert "`up`: worse (+0.1000 " in old and "Lowest mean: `down`, 0.5100." in old
    assert "0.6150 ± 0.0205 nats per token (val/loss" in old
    same = {"a": [0.0, 0.0, 0.0], "b": [1.0, 1.1, 0.9]}
    verdicts = [compare(same, larger_is_better=direction) for direction in (False, True)]
    assert [(one["a"].verdict, one["b"].verdict) for one in verdicts] == [
        ("not distinguishable", "worse"),
        ("not distinguishable", "better"),
    ]


def test_fewer_seeds_find_what_all_find(tmp_path):
    larger = results("val/accuracy", better={"val/accuracy": "larger"}, fewer_seeds=[4])
    assert [row[2:5] for row in fewer_seeds_rows(larger)] == [
        ["100.0%", "0.0%", "0.0%"],
        ["0.0%", "0.0%", "100.0%"],
    ]
    smaller = fewer_seeds_rows(results("val/loss", fewer_seeds=[4]))
    assert [row[2:5] for row in smaller] == [["0.0%", "0.0%", "100.0%"], ["100.0%", "0.0%", "0.0%"]]
    assert [row[5] for row in smaller] == [row[5] for row in fewer_seeds_rows(larger)]  # power knows no direction
    assert draw_fewer_seeds(larger, tmp_path).stat().st_size > 5_000
    assert "With fewer seeds" in report_text(larger)


def test_units_are_those_of_the_task():
    assert loss_unit("lightning_gpt.tasks.RewardModel", False) == "nats per pair"
    assert loss_unit("lightning_gpt.tasks.SFT", False) == "nats per token"
    assert loss_unit("mine.Pretraining2", True) == "nats per token"
    assert loss_unit("lightning_gpt.tasks.PPO", False) == ""
    of_pairs = {"loss_unit": "nats per pair"}
    assert unit_of("val/loss", of_pairs) == " nats per pair" and unit_of("val/loss_at_64") == " nats per token"
    assert unit_of("val/bits_per_byte", of_pairs) == " bits per byte"
    assert unit_of("val/accuracy", of_pairs) == unit_of("experts/dropped") == ""
    assert unit_of("val/loss", {"loss_unit": ""}) == ""


def test_what_is_known_need_not_be_said(write_experiment):
    better = {"val/ended": "larger", "val/mean_length": "smaller"}
    names = ["val/accuracy", "val/ended", "val/loss"]
    experiment = load_experiment(write_experiment(metrics=names, curve="val/mean_length", better=better))
    assert experiment.better == {
        "val/accuracy": "larger",
        "val/ended": "larger",
        "val/loss": "smaller",
        "val/mean_length": "smaller",
    }
    assert json.loads(json.dumps(experiment.better)) == experiment.better


WRONG = {
    "no mapping": ({"better": ["val/loss"]}, r"better=\['val/loss'\] must map metrics"),
    "not used": ({"better": {"val/los": "larger"}}, "'val/los' is none of this experiment's .*did you mean 'val/loss'"),
    "direction": ({"better": {"val/loss": "higher"}}, "better.val/loss='higher' must be smaller or larger"),
    "unknown": ({"metrics": ["val/acuracy"]}, "'val/acuracy' is unknown .did you mean 'val/accuracy'.*say whether"),
    "no name": ({"metrics": ["acc"], "better": {"acc": "larger"}}, "'acc' is no name that training logs"),
    "needs": ({"needs": ["models/sft"]}, "needs=.*must map paths to the commands"),
    "no command": ({"needs": {"models/sft": ""}}, "needs=.*must map paths to the commands"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_mistakes_of_the_fields_are_named(write_experiment, changes, message):
    path = write_experiment(**changes)
    with pytest.raises(ValueError, match=message) as error:
        load_experiment(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_search_does_not_look_for_the_largest(write_search):
    with pytest.raises(ValueError, match="metric=val/accuracy: larger is better, and a search looks for the smallest"):
        load_search(write_search(metric="val/accuracy"))
