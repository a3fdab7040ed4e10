import itertools
import re

import numpy as np
import pytest
from scipy import stats

from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.fewer_seeds import (
    VERDICTS,
    draw_fewer_seeds,
    fewer_seeds_rows,
    unpaired_shares,
    verdict_shares,
)
from lightning_gpt.experiments.report import report_text
from lightning_gpt.experiments.statistics import compare, power


def drawn(seed: int, seeds: int, **means: float) -> dict[str, list[float]]:
    generator = np.random.default_rng(seed)
    return {name: list(generator.normal(mean, 1.0, seeds)) for name, mean in means.items()}


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_each_part_is_read_as_an_experiment_of_its_own(n):
    """By the very function that judges whole experiments, over every choice of seeds."""
    differences = drawn(1, 7, good=-1.5, same=0.0, bad=2.0)
    counts = {name: dict.fromkeys(VERDICTS, 0) for name in differences}
    parts = list(itertools.combinations(range(7), n))
    for part in parts:
        for name, one in compare({k: [v[i] for i in part] for k, v in differences.items()}).items():
            counts[name][one.verdict] += 1
    expected = {name: {v: count / len(parts) for v, count in one.items()} for name, one in counts.items()}
    found = verdict_shares(differences, n)
    for name in differences:
        assert found[name] == pytest.approx(expected[name])


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_parts_of_very_many_seeds_find_as_often_as_the_power_says(n):
    shares = verdict_shares(drawn(2, 20_000, good=-1.0), n, most=4_000)["good"]
    assert shares["better"] + shares["worse"] == pytest.approx(power(n, -1.0, 1.0), abs=0.03)
    assert sum(shares.values()) == pytest.approx(1)


def test_without_a_difference_one_in_twenty_is_a_false_verdict():
    shares = verdict_shares(drawn(3, 20_000, same=0.0), 4, most=4_000)["same"]
    assert shares["not distinguishable"] == pytest.approx(0.95, abs=0.015)
    assert stats.binomtest(round(4_000 * shares["better"]), 4_000, 0.025).pvalue > 1e-3


def test_without_pairing_what_the_seeds_share_drowns_a_difference():
    """Seeds that differ by ten times the difference: n = 8 pairs always see it, n = 8 runs a side hardly ever."""
    generator = np.random.default_rng(5)
    shared = generator.normal(0, 10.0, 4_000)
    ours, theirs = shared - 1.0 + generator.normal(0, 0.1, 4_000), shared
    assert verdict_shares({"good": ours - theirs}, 8, most=500)["good"]["better"] == 1
    assert unpaired_shares({"good": (ours, theirs)}, 8, most=500)["good"] < 0.1
    independent = {"good": (generator.normal(-2, 1, 4_000), generator.normal(0, 1, 4_000))}
    # Two-sample power of d = 2 at n = 8 (noncentral t with 14 degrees of freedom).
    critical, shift = stats.t.ppf(0.975, 14), 2 * np.sqrt(8 / 2)
    foreseen = stats.nct.sf(critical, 14, shift) + stats.nct.cdf(-critical, 14, shift)
    assert unpaired_shares(independent, 8, most=2_000)["good"] == pytest.approx(foreseen, abs=0.03)
    assert unpaired_shares({"good": (ours[:6], theirs[:6])}, 4) is None


def test_equal_differences_are_no_surprise():
    assert verdict_shares({"same": [0.0] * 4, "good": [-1.0] * 4}, 3) == {
        "same": {"better": 0.0, "not distinguishable": 1.0, "worse": 0.0},
        "good": {"better": 1.0, "not distinguishable": 0.0, "worse": 0.0},
    }


def test_parts_that_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"n=5 seeds cannot be chosen of \[3\]"):
        verdict_shares({"a": [1.0, 2.0, 3.0]}, 5)
    with pytest.raises(ValueError, match=r"n=2 seeds cannot be chosen of \[2, 3\]"):
        verdict_shares({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0]}, 2)


@pytest.fixture
def results():
    """Of six seeds, one of which has diverged in one variant; as results.json has them."""
    generator = np.random.default_rng(4)
    cells = []
    for variant, mean in {"base": 2.0, "good": 1.9}.items():
        for seed in range(6):
            final = {} if (variant, seed) == ("good", 3) else {"val/loss": mean + generator.normal(0, 0.02)}
            cells.append(
                {
                    "variant": variant, "seed": seed, "status": "done" if final else "diverged", "final": final,
                    "steps": 4, "tokens": 64, "training_flops": 1e6, "tokens_per_second": 10, "seconds": 1.0,
                    "peak_memory_bytes": 1, "attempts": 1, "points": [],
                }
            )  # fmt: skip
    corpus = {
        "name": "text", "scheme": "char", "vocab_size": 84, "lossless": True, "unknown_tokens": 0,
        "train_tokens": 1000, "val_tokens": 100, "val_bytes_per_token": 1.0,
    }  # fmt: skip
    return {
        "question": "Does it matter?", "expectation": "", "notes": "", "command": "", "configs": [], "overrides": {},
        "budget": "4 optimizer steps", "variants": {"base": {}, "good": {}}, "metrics": ["val/loss"],
        "curve": "val/loss", "identical_within": None, "fewer_seeds": [2, 5, 6], "cells": cells,
        "corpora": dict.fromkeys(("base", "good"), corpus), "versions": {"python": "3.12"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
    }  # fmt: skip


def test_the_report_tells_what_fewer_seeds_would_have_said(results, tmp_path):
    rows = fewer_seeds_rows(results)
    assert [(row[0], row[1]) for row in rows] == [("`good`", "2"), ("`good`", "5")]  # five pairs are left
    assert rows[1][2:5] == ["100.0%", "0.0%", "0.0%"]
    path = draw_fewer_seeds(results, tmp_path)
    text = report_text(results, [path.name])
    section = re.search(r"## With fewer seeds\n\n(.*?)\n\n", text, re.DOTALL)[1]
    assert section.splitlines()[2] == "| " + " | ".join(rows[0]) + " |"
    assert "](fewer_seeds.png)" in text and path.stat().st_size > 5_000
    assert draw_fewer_seeds({**results, "fewer_seeds": []}, tmp_path) is None


WRONG = {
    "more than all": ([2, 4], "fewer_seeds=.2, 4. must be rising whole numbers from 2 to 3"),
    "one": ([1, 2], "from 2 to 3"),
    "falling": ([3, 2], "must be rising"),
    "no list": (2, "fewer_seeds=2 must be rising"),
}


@pytest.mark.parametrize("given, message", WRONG.values(), ids=WRONG)
def test_mistakes_of_the_field_are_named(write_experiment, given, message):
    several = {"variants": {"a": {}, "b": {}}, "seeds": [1, 2, 3], "against": "baseline"}
    with pytest.raises(ValueError, match=message):
        load_experiment(write_experiment(fewer_seeds=given, **several))
    assert load_experiment(write_experiment(fewer_seeds=[2, 3], **several)).fewer_seeds == [2, 3]
    with pytest.raises(ValueError, match="nothing is compared"):
        load_experiment(write_experiment(fewer_seeds=[2, 3], **{**several, "against": "none"}))
