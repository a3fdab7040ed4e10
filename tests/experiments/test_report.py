import json

import numpy as np
import pytest
from scipy import stats

from lightning_gpt.experiments.comparisons import comparisons_json, comparisons_of
from lightning_gpt.experiments.figure import draw_curves
from lightning_gpt.experiments.levels_figure import draw_levels
from lightning_gpt.experiments.report import conclusion, largest_curve_difference, report_text, write_report

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
    p_values = []
    for name in ("good", "same", "bad"):
        difference = np.subtract(VALUES[name], VALUES["base"])
        found = comparisons_of(compared, "val/loss")[name]
        low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
        mean, half_width = found.difference.mean, found.difference.half_width
        assert (mean - half_width, mean + half_width) == pytest.approx((low, high))
        p_values.append(stats.ttest_rel(VALUES[name], VALUES["base"]).pvalue)
        assert found.p == pytest.approx(p_values[-1])
    assert comparisons_of(compared, "val/loss")["bad"].p_holm == pytest.approx(3 * min(p_values))
    stored = json.loads(json.dumps(comparisons_json(compared)))["val/loss"]["bad"]
    assert (stored["reference"], stored["verdict"]) == ("base", "worse")


def test_conclusion_judges_by_the_corrected_test(compared):
    text = conclusion(compared)
    assert "The baseline `base` ends at 1.9200 ± 0.0497 nats per token (val/loss, n = 3)." in text
    corrected = {name: f"{one.p_holm:.2g}" for name, one in comparisons_of(compared, "val/loss").items()}
    assert f"`good`: better (-0.0967 ± 0.0143, p = {corrected['good']})." in text
    assert "`same`: not distinguishable (+0.0000 ± 0.0430, p = 1)." in text
    assert f"`bad`: worse (+0.5300 ± 0.0745, p = {corrected['bad']})." in text
    assert "Lowest mean: `good`, 1.8233." in text
    assert "With n = 3 and a (median) standard deviation of paired differences of 0.0" in text


def test_a_ladder_compares_each_step_with_the_one_before(compared):
    compared["against"] = "previous"
    difference = comparisons_of(compared, "val/loss")["same"].difference
    assert difference.mean == pytest.approx(np.subtract(VALUES["same"], VALUES["good"]).mean())
    assert "`same` after `good`: worse (+0.0967 ± 0.0574, p = 0.0" in conclusion(compared)
    assert "minus the one before, paired" in report_text(compared)


def test_nothing_is_judged_where_nothing_is_compared(compared):
    compared["against"] = "none"
    text = report_text(compared)
    assert "| val/loss | n | mean | deviation |" in text and "verdict" not in text
    assert conclusion(compared) == "Lowest val/loss: `good`, 1.8233."


def test_curves_are_drawn_over_what_is_known(compared, tmp_path, monkeypatch):
    """Over tokens; over FLOPs where variants differ in FLOPs a token; over time where it was logged."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.write_bytes(b"")))

    def labels():
        draw_curves(compared, tmp_path)
        return [axes.get_xlabel() for axes in drawn[-1].axes]

    assert labels() == ["tokens"]
    for one in compared["cells"]:
        one["points"] = [[step, value, step / 2] for step, value in one["points"]]
        one["flops_per_step"] *= 2 if one["variant"] == "bad" else 1
    assert labels() == ["tokens", "training FLOPs", "training time (s)"]
    tokens, flops, seconds = ([line.get_xdata()[-1] for line in axes.lines] for axes in drawn[-1].axes)
    assert tokens == [20 * 307200 / 400] * 4
    assert flops == pytest.approx([20 * 3.96e9] * 3 + [40 * 3.96e9])
    assert seconds == [10] * 4
    for one in compared["cells"]:
        one |= {"tokens": None, "points": [point[:2] for point in one["points"]], "flops_per_step": None}
    assert labels() == ["optimizer step"]


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
    assert "| `b` | 1 (+1 diverged) | 1.9000 | - | -0.1000 | - | - | - | one seed: no verdict |" in text


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


def test_values_are_drawn_over_the_number_that_variants_differ_in(compared, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.write_bytes(b"")))
    assert draw_levels(compared, tmp_path) is None  # all have one batch size
    for size, name in zip((4, 1, 64, 16), compared["variants"]):
        compared["variants"][name] = {"data.init_args.batch_size": size}
    path = draw_levels(compared, tmp_path)
    (axes,) = drawn[-1].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("data.batch_size", "val/loss (nats per token)")
    assert axes.get_xscale() == "log"
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [1, 4, 16, 64]
    assert line.get_ydata() == pytest.approx([np.mean(VALUES[name]) for name in ("good", "base", "bad", "same")])
    assert "](levels.png)" in report_text(compared, [path.name])
    compared["variants"]["bad"] = {"data.init_args.batch_size": "many"}
    assert draw_levels(compared, tmp_path) is None


def test_losses_along_the_context_are_drawn(compared, tmp_path):
    compared["metrics"] = ["val/loss_at_64", "val/loss_at_128"]
    for one in compared["cells"]:
        loss = one["final"]["val/loss"]
        one["final"] = {"val/loss_at_64": loss, "val/loss_at_128": loss + 1}
    write_report(compared, tmp_path)
    assert (tmp_path / "positions.png").stat().st_size > 5000
    assert "](positions.png)" in (tmp_path / "report.md").read_text()
