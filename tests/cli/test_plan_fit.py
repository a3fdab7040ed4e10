import json
import re
from pathlib import Path

import pytest

from lightning_gpt.cli import main

GRID = Path(__file__).parents[1] / "planning" / "conftest.py"


@pytest.fixture(scope="session")
def grid():
    """The grid of tests/planning."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("planted_grid", GRID)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fitted(grid, tmp_path_factory):
    """A directory with results.json and what `plan fit` made of it, with the largest run held out."""
    place = tmp_path_factory.mktemp("fit")
    (place / "results.json").write_text(json.dumps(grid.grid_results()))
    options = ["--hold_out", "d8w320-16M", "--predict", "1e7,6.4e7", "--resamples", "60"]
    main(["plan", "fit", str(place / "results.json"), *options])
    return place


def test_the_law_is_found_and_the_largest_run_foretold(fitted, grid):
    content = json.loads((fitted / "fit.json").read_text())
    for name, value in grid.PLANTED.items():
        found = content["constants"][name]
        assert found["low"] <= value <= found["high"], name
    held, asked = content["predictions"]
    assert held["name"] == "d8w320-16M"
    assert held["low"] <= held["measured"] <= held["high"]
    assert held["loss"] == pytest.approx(grid.planted_loss(held["parameters"], held["tokens"]), rel=0.01)
    assert asked["measured"] is None
    assert asked["loss"] == pytest.approx(grid.planted_loss(1e7, 6.4e7), rel=0.02)
    assert asked["low"] < asked["loss"] < asked["high"]
    assert sum(point["fitted"] for point in content["points"]) == 29
    assert content["residual_standard_deviation"] == pytest.approx(0.003, rel=0.6)
    assert 0.9 < content["flops"]["power"] < 1
    assert content["command"].endswith("--hold_out d8w320-16M --predict 1e7,6.4e7 --resamples 60")
    assert {law["of"]: law["points"] for law in content["power_laws"]} == {"parameters": 5, "tokens": 4}


def test_the_report_and_the_picture(fitted):
    text = (fitted / "fit.md").read_text()
    assert "d8w320-16M (held out)" in text
    assert re.search(r"\| d8w320-16M \| 10\.\d+ M \| 16 M \| 2\.\d+ .*inside the interval \|", text)
    assert "| a | N_opt ~ C^a |" in text
    assert text.count("\n| d") == 31
    assert (fitted / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_ones_own_law_plans(fitted, capsys):
    main(["plan", "scaling", "--law", str(fitted), "--flops", "1e15", "--vocab", "1024"])
    text = capsys.readouterr().out
    assert "own (" in text
    assert "95% of the resampled fits" in text
    size = re.search(r"best size +([\d.]+) M parameters", text)
    assert 1 < float(size[1]) < 5


def test_body_parameters_and_6nd(grid, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(grid.grid_results()))
    main(["plan", "fit", str(tmp_path), "--count", "body", "--flops", "6nd", "--resamples", "20"])
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["count"] == "body"
    assert (content["flops"]["factor"], content["flops"]["power"]) == (6.0, 1.0)
    assert "N counts body parameters" in capsys.readouterr().out


def test_seeds_tell_their_noise(grid, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(grid.grid_results(noise=0.005, seeds=3)))
    main(["plan", "fit", str(tmp_path), "--resamples", "20"])
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["seed_standard_deviation"] == pytest.approx(0.005, rel=0.3)


def test_several_files_and_what_does_not_compare(grid, tmp_path, capsys):
    one, other = grid.grid_results(sizes=grid.SIZES[:3]), grid.grid_results(sizes=grid.SIZES[3:], body=False)
    for corpus in other["corpora"].values():
        corpus["name"] = "letters"
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "other.json").write_text(json.dumps(other))
    out = tmp_path / "both"
    main(
        [
            "plan",
            "fit",
            str(tmp_path / "one.json"),
            str(tmp_path / "other.json"),
            "--resamples",
            "20",
            "--out",
            str(out),
        ]
    )
    text = capsys.readouterr().out
    assert "warning: runs of different data" in text
    assert "letters bpe 1024 (d5w192-1M" in text
    assert "30 runs" in text
    assert (out / "fit.json").exists()


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        ({"tokens": (4_000_000,)}, [], "all have the same tokens, so B and beta cannot be found, nor E"),
        ({"sizes": ((2, 64),)}, [], "all have the same parameters, so A and alpha cannot be found"),
        ({"body": False}, ["--count", "body"], "has no body_parameters in its results.json"),
        ({}, ["--predict", "1e7"], "predict=1e7 must be parameters and tokens"),
        ({}, ["--predict", "1e7,-2"], "predict=1e7,-2 must be"),
        ({}, ["--hold_out", "nothing"], "hold_out=nothing matches no run"),
        ({}, ["--resamples", "3"], "resamples=3 are too few"),
        ({}, ["--metric", "val/los"], "no finished run with val/los"),
    ],
)
def test_mistakes_are_one_line(change, args, message, grid, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(grid.grid_results(**change)))
    with pytest.raises(SystemExit) as stop:
        main(["plan", "fit", str(tmp_path), *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "fit.json").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_runs_that_follow_no_law_are_warned_of_in_words(grid, tmp_path, capsys):
    """A loss that rises with tokens has no best size: the report says nan, numpy says nothing."""
    results = grid.grid_results()
    for cell in results["cells"]:
        cell["final"]["val/loss"] = 2.0 + 1e-8 * cell["tokens"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    main(["plan", "fit", str(tmp_path / "results.json"), "--resamples", "20"])
    assert "a loss that rises is no law" in capsys.readouterr().out
