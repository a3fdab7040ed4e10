import json

import pytest

from lightning_gpt.nn.flops import body_parameters, parameters, training_flops_per_token
from lightning_gpt.planning.runs import read_runs, split_runs


def test_cells_of_an_experiment(grid, write_results):
    results = grid(seeds=2)
    runs, warnings = read_runs([str(write_results(results))])
    assert len(runs) == 60
    assert warnings == []
    cell, run = results["cells"][7], runs[7]
    assert (run.name, run.seed, run.parameters, run.tokens) == tuple(
        cell[key] for key in ("variant", "seed", "parameters", "tokens")
    )
    assert run.loss == cell["final"]["val/loss"]
    assert run.size("all") == cell["parameters"] > run.size("body") == cell["body_parameters"]
    assert run.corpus == "words bpe 1024"


def test_the_directory_stands_for_its_file_and_twice_is_once(grid, write_results):
    path = write_results(grid())
    assert read_runs([str(path.parent), str(path)])[0] == read_runs([str(path)])[0]


def test_runs_without_a_loss_are_left_out_by_name(grid, write_results):
    results = grid()
    results["cells"][0] |= {"status": "diverged", "final": {}}
    results["cells"][1]["tokens"] = None
    runs, warnings = read_runs([str(write_results(results))])
    assert len(runs) == 28
    assert "d2w64-1M seed 1 (diverged, val/loss=None)" in warnings[0]
    assert "d2w64-2M seed 1 (no parameters or tokens written down)" in warnings[0]


def test_other_data_is_named(grid, write_results):
    results = grid()
    results["corpora"]["d8w320-16M"]["vocab_size"] = 512
    _, warnings = read_runs([str(write_results(results))])
    assert len(warnings) == 1
    assert "runs of different data are fitted as one" in warnings[0]
    assert "words bpe 512 (d8w320-16M)" in warnings[0]


def test_repeated_text_is_named(grid, write_results):
    results = grid()
    results["corpora"]["d8w320-16M"]["train_tokens"] = 8_000_000
    _, warnings = read_runs([str(write_results(results))])
    assert warnings[0].startswith("d8w320-16M read the training text more than once")


def test_a_run_directory_counts_as_its_experiment_would(lightning_gpt, corpus):
    from lightning_gpt.nn import GPTConfig

    run = lightning_gpt("fit")
    (found,), warnings = read_runs([str(run)])
    vocabulary = json.loads((corpus / "meta.json").read_text())["tokenizer"]["vocab_size"]
    config = GPTConfig(vocab_size=vocabulary, block_size=16, n_layer=2, n_head=2, n_embd=32)
    assert (found.parameters, found.body_parameters) == (parameters(config), body_parameters(config))
    assert found.tokens == 6 * 4 * 16
    assert found.flops == pytest.approx(training_flops_per_token(config, 16) * found.tokens)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found.loss == [row["val/loss"] for row in rows if "val/loss" in row][-1]
    assert warnings == []
    assert read_runs([str(run.parent)])[0] == [found]

    unfinished = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 3]
    (run / "metrics.jsonl").write_text("\n".join(unfinished))
    (found,), warnings = read_runs([str(run)])
    assert found.tokens == 3 * 4 * 16
    assert "last measured at step 3 of 6" in warnings[0]


def test_held_out_runs(grid, write_results):
    runs, _ = read_runs([str(write_results(grid()))])
    kept, held = split_runs(runs, "d8w320-*")
    assert {run.name for run in held} == {f"d8w320-{n}M" for n in (1, 2, 4, 8, 16)}
    assert len(kept) == 25
    assert split_runs(runs, None) == (runs, [])
    with pytest.raises(ValueError, match=r"hold_out=d9\* matches no run; there are d2w64-1M"):
        split_runs(runs, "d9*")


def test_files_that_are_none(tmp_path, grid, write_results):
    with pytest.raises(ValueError, match=r"nowhere is neither a results.json, nor a run directory"):
        read_runs([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"is not the results.json of an experiment"):
        read_runs([str(write_results({"a": 1}, "other.json"))])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not the results.json"):
        read_runs([str(tmp_path / "broken.json")])
    with pytest.raises(ValueError, match=r"no finished run with val/bits_per_byte"):
        read_runs([str(write_results(grid()))], "val/bits_per_byte")
    (run,) = read_runs([str(write_results({**grid(), "cells": grid(body=False)["cells"][:1]}))])[0]
    with pytest.raises(ValueError, match=r"count=body: d2w64-1M has no body_parameters"):
        run.size("body")
