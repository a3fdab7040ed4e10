import json

import numpy as np
import pytest
from scipy import stats

from lightning_gpt.experiments.report import (
    conclusion,
    largest_curve_difference,
    paired_difference,
    report_text,
    write_report,
)

VALUES = {"base": [1.90, 1.94, 1.92], "good": [1.80, 1.85, 1.82], "same": [1.91, 1.92, 1.93], "bad": [2.4, 2.5, 2.45]}


def cell(variant, seed, value, points=(), status="done"):
    final = {} if value is None else {"val/loss": value}
    return {
        "variant": variant, "seed": seed, "status": status, "message": "", "final": final, "best": final,
        "steps": 400, "tokens": 307200, "training_flops": 1.5e12, "flops_per_step": 3.96e9, "seconds": 20.0,
        "attempts": 1, "tokens_per_second": 25000.0, "peak_memory_bytes": 2**30, "config_hash": "x",
        "points": [list(point) for point in points],
    }  # fmt: skip


def results(cells, **changes):
    names = list(dict.fromkeys(one["variant"] for one in cells))
    corpus = {
        "name": "text", "scheme": "char", "vocab_size": 84, "lossless": True, "unknown_tokens": 0,
        "train_tokens": 1000, "val_tokens": 100, "val_bytes_per_token": 1.0,
    }  # fmt: skip
    return {
        "format": 1,
        "command": "lightning-gpt experiment run experiments/x/y.yaml",
        "question": "Does it matter?",
        "expectation": "Yes.",
        "notes": "A note.",
        "configs": ["base.yaml"],
        "budget": "400 optimizer steps",
        "overrides": {"trainer.precision": "bf16-mixed"},
        "variants": {name: {"data.init_args.batch_size": 2} for name in names},
        "metrics": ["val/loss"],
        "curve": "train/loss",
        "curve_over": "optimizer step",
        "identical_within": None,
        "corpora": dict.fromkeys(names, corpus),
        "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
        "versions": {"python": "3.12.1"},
        "cells": cells,
        **changes,
    }


@pytest.fixture
def compared():
    cells = [
        cell(name, seed, value, [(10, value + 1), (20, value)])
        for name, values in VALUES.items()
        for seed, value in enumerate(values)
    ]
    return results(cells)


def test_paired_differences_are_scipys(compared):
    for name in ("good", "same", "bad"):
        difference = np.subtract(VALUES[name], VALUES["base"])
        found = paired_difference(compared, name, "val/loss")
        low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
        assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high), abs=1e-4)


def test_conclusion_judges_by_the_interval(compared):
    text = conclusion(compared)
    assert "The baseline `base` ends at 1.9200 ± 0.0497 nats per token (val/loss)." in text
    assert "`good`: better (-0.0967 ± 0.0143)." in text
    assert "`same`: not distinguishable (+0.0000 ± 0.0430)." in text
    assert "`bad`: worse (+0.5300 ± 0.0745)." in text
    assert "Lowest mean: `good`." in text


def test_a_ladder_compares_each_step_with_the_one_before(compared):
    compared["against"] = "previous"
    difference = paired_difference(compared, "same", "val/loss")
    assert difference.mean == pytest.approx(np.subtract(VALUES["same"], VALUES["good"]).mean())
    assert "`same` after `good`: worse (+0.0967 ± 0.0574)." in conclusion(compared)
    assert "minus the one before, paired" in report_text(compared)


def test_parameters_that_a_token_does_not_meet_are_told(compared):
    for one in compared["cells"]:
        one |= {"parameters": 3000, "active_parameters": 3000 if one["variant"] == "base" else 1000}
    compared["equal"] = {"parameters": 0, "training_flops": 0.01}
    text = report_text(compared)
    assert "checked before the runs: parameters are equal\n" in text
    assert "checked before the runs: training FLOPs are equal within 1.0%\n" in text
    assert "| `base` | 3,000 | 400 |" in text
    assert "| `good` | 3,000 (1,000 active) | 400 |" in text


def test_diverged_runs_are_counted_not_averaged():
    cells = [cell("a", 1, 2.0), cell("a", 2, 2.2), cell("b", 1, 1.9), cell("b", 2, None, status="diverged")]
    text = report_text(results(cells))
    assert "1 of 2 runs of `b` diverged and have no value." in text
    assert "| `b` | 1 (+1 diverged) | 1.9000 | -0.1000 | one seed: no verdict |" in text


def test_same_computation_is_judged_by_every_step():
    curves = {"a": [(1, 4.0), (2, 3.0)], "b": [(1, 4.0001), (2, 3.0)], "c": [(1, 4.0), (2, 3.2)]}
    compared = results([cell(name, 1, 3.0, points) for name, points in curves.items()], identical_within=1e-3)
    assert largest_curve_difference(compared, "b") == pytest.approx((1e-4, 2))
    text = conclusion(compared)
    assert "`b` is the same computation as `a`: over 2 steps train/loss differs by at most 0.0001" in text
    assert "`c` is NOT the same computation as `a`" in text


def test_lost_text_is_told():
    compared = results([cell("a", 1, 1.0), cell("b", 1, 1.0)])
    compared["corpora"]["b"] = {**compared["corpora"]["a"], "unknown_tokens": 12, "lossless": False}
    assert "12 unknown tokens: its bits per byte flatter it" in report_text(compared)


def test_report_and_small_figure_are_written(compared, tmp_path):
    path = write_report(json.loads(json.dumps(compared)), tmp_path / "out")
    text = path.read_text()
    assert text.startswith("# Does it matter?\n\n```\nlightning-gpt experiment run experiments/x/y.yaml\n```\n")
    assert "a processor, 2 core(s); python 3.12.1. All 12 runs took 4.0 minutes" in text
    assert "(curves.png)" in text
    picture = (tmp_path / "out" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_losses_along_the_context_are_drawn(compared, tmp_path):
    compared["metrics"] = ["val/loss_at_64", "val/loss_at_128"]
    for one in compared["cells"]:
        loss = one["final"]["val/loss"]
        one["final"] = {"val/loss_at_64": loss, "val/loss_at_128": loss + 1}
    write_report(compared, tmp_path)
    assert (tmp_path / "positions.png").stat().st_size > 5000
    assert "](positions.png)" in (tmp_path / "report.md").read_text()
