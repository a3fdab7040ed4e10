import csv
import json
import re
import shutil
import subprocess

import pytest

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.experiments.comparison import compare, value_at
from lightning_gpt.experiments.run_finder import find_runs
from lightning_gpt.experiments.run_reader import read_run

HEADS = (1, 4)
SEEDS = (1, 2)


@pytest.fixture
def shown(capsys, monkeypatch, studied):
    """shown(words...): standard output and standard error of `lightning-gpt compare`, among the runs."""
    monkeypatch.chdir(studied)

    def run(*words):
        capsys.readouterr()
        main(["compare", *map(str, words)])
        return capsys.readouterr()

    return run


@pytest.fixture
def refused(capsys, monkeypatch, studied):
    """refused(words...): the one line with which it ends."""
    monkeypatch.chdir(studied)

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, words)])
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert not out and len(err.strip().splitlines()) == 1
        return err

    return run


def final(run, tag="val/loss"):
    return [row[tag] for row in read_metrics(run / "metrics.jsonl") if tag in row][-1]


def cells(text):
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_only_settings_that_differ_beside_the_metrics(shown, studied):
    text, errors = shown("heads_*")
    heading, *rows = cells(text)
    assert heading[:5] == ["run", "seed_everything", "n_head", "val/loss", "train/loss"]
    assert {"tokens/s", "peak MiB", "wall time", "status"} <= set(heading)
    names = [f"heads_{heads}/seed_{seed}" for heads in HEADS for seed in SEEDS]
    assert [row[0] for row in rows] == names
    for name, row in zip(names, rows):
        assert row[3] == f"{final(studied / name / 'version_0'):.4f}"
        assert row[heading.index("status")] == "done"
        assert re.fullmatch("[▁▂▃▄▅▆▇█]{12}", row[-1])
    assert "warning" not in errors


def test_groups_are_those_that_differ_by_seed(shown, studied):
    from scipy import stats

    text, _ = shown("heads_*", "--group", "--metrics", "val/loss", "--format", "csv")
    first, second = csv.DictReader(text.splitlines())
    values = {h: [final(studied / f"heads_{h}/seed_{s}/version_0") for s in SEEDS] for h in HEADS}
    test = stats.ttest_rel(values[4], values[1])
    interval = test.confidence_interval(0.95)
    assert (first["run"], second["run"]) == ("heads_1", "heads_4")
    assert "seed_everything" not in first and first["model.config.n_head"] == "1"
    assert float(first["val/loss"]) == pytest.approx(sum(values[1]) / 2)
    assert first["val/loss n"] == "2" and first["val/loss difference"] == ""
    assert float(second["val/loss difference"]) == pytest.approx((sum(values[4]) - sum(values[1])) / 2)
    assert float(second["val/loss difference low"]) == pytest.approx(interval.low)
    assert float(second["val/loss difference p"]) == pytest.approx(test.pvalue)
    against = shown("heads_*", "--group", "--against", "heads_4").out
    assert "minus heads_4" in against and "paired t-test" in against


def test_filters_sorts_and_chosen_metrics(shown, studied):
    _, *rows = cells(shown("heads_*", "--filter", "n_head=4", "--filter", "seed_everything!=1").out)
    assert len(rows) == 1
    middle = sorted(final(run) for run in studied.glob("*/*/version_0"))[1]
    _, *rows = cells(shown(".", "--filter", f"val/loss<={middle}").out)
    assert len(rows) == 2
    assert len(cells(shown(".", "--filter", "model.init_args.config.n_head<2").out)) == 3
    heading, *rows = cells(shown(".", "--metrics", "val/loss", "--metrics", "gradient_norm", "--sort=-val/loss").out)
    assert heading[3:5] == ["val/loss", "optim/gradient_norm"]
    values = [float(row[3]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_values_at_a_common_place(shown, studied):
    runs = [read_run(path) for path in find_runs([str(studied)])]
    rows = {row["step"]: row for row in read_metrics(runs[0].directory / "metrics.jsonl") if "train/loss" in row}
    tokens_a_step = rows[6]["progress/tokens"] / 6
    assert value_at(runs[0], "train/loss", "tokens", 4 * tokens_a_step) == pytest.approx(rows[4]["train/loss"])
    between = (rows[4]["train/loss"] + rows[5]["train/loss"]) / 2
    assert value_at(runs[0], "train/loss", "tokens", 4.5 * tokens_a_step) == pytest.approx(between)
    assert value_at(runs[0], "train/loss", "step", 7) is None
    flops = [rows[n]["speed/tflops"] * 1e12 / rows[n]["speed/tokens_per_second"] for n in (2, 6)]
    assert flops[0] == pytest.approx(flops[1])
    assert value_at(runs[0], "train/loss", "flops", 4 * tokens_a_step * flops[0]) == pytest.approx(
        rows[4]["train/loss"], rel=1e-6
    )
    seconds = sum(tokens_a_step / rows[n]["speed/tokens_per_second"] for n in range(1, 4))
    assert value_at(runs[0], "train/loss", "time", seconds) == pytest.approx(rows[3]["train/loss"])
    text = shown("heads_1", "--at", "tokens=common", "--metrics", "val/loss").out
    assert f"values at {6 * tokens_a_step:,.6g} tokens" in text
    assert f"{final(studied / 'heads_1/seed_1/version_0'):.4f}" in text


def test_unfinished_and_diverged_runs_are_marked(shown, studied, tmp_path):
    for name, edit in (
        ("cut", lambda rows: [row for row in rows if row["step"] <= 3]),
        ("sick", lambda rows: [*(row for row in rows if row["step"] <= 4), {"step": 5, "train/loss": float("nan")}]),
        ("whole", lambda rows: rows),
    ):
        run = tmp_path / "copies" / name
        shutil.copytree(studied / "heads_1/seed_1/version_0", run)
        (run / "run.json").unlink()
        rows = edit(read_metrics(run / "metrics.jsonl"))
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, errors = shown(tmp_path / "copies")
    assert {row[0]: row[-2] for row in cells(text)[1:]} == {"cut": "unfinished", "sick": "diverged", "whole": "done"}
    assert "--at common compares where all runs were" in errors
    record = tmp_path / "copies/cut/run.json"
    record.write_text(json.dumps({"status": "running", "seconds": 75.0, "peak_memory_bytes": 2**30}))
    assert "running or killed" in shown(tmp_path / "copies/cut").out
    assert "1:15" in shown(tmp_path / "copies/cut").out


def test_a_run_that_diverged_before_its_first_entry_is_in_the_table(shown, refused, tmp_path):
    from lightning_gpt.callbacks.board import Board

    board = Board(str(tmp_path), "sick", 0, hyperparameters={"model.optimizer.lr": 1e30})
    board.end("failure", {"Final_cost/seconds": 1.0}, 1)
    board.finalize("failed")
    sick = tmp_path / "sick/version_0"
    (sick / "run.json").write_text(json.dumps({"status": "diverged", "message": "the loss is nan"}))
    heading, *rows = csv.reader(shown("heads_1/seed_1", sick, "--format", "csv").out.splitlines())
    assert "Final_cost/seconds" not in heading
    assert "diverged" in rows[1] and "1e+30" in rows[1]
    assert "the loss is nan" in refused(sick)


def test_in_groups_a_run_that_did_not_end_has_no_final_value(studied, tmp_path):
    shutil.copytree(studied / "heads_1", tmp_path / "heads_1")
    third = tmp_path / "heads_1/seed_3/version_0"
    shutil.copytree(tmp_path / "heads_1/seed_2/version_0", third)
    config = (third / "config.yaml").read_text().replace("seed_everything: 2", "seed_everything: 3")
    (third / "config.yaml").write_text(config)
    record = json.loads((third / "run.json").read_text())
    (third / "run.json").write_text(json.dumps({**record, "status": "diverged"}))
    (row,) = compare([read_run(path) for path in find_runs([str(tmp_path)])], group=True).rows
    assert len(row.runs) == 3 and row.metrics["val/loss"].n == 2
    assert row.status == "2 done, 1 diverged"
    (row,) = compare([read_run(path) for path in find_runs([str(tmp_path)])], group=True, at="common").rows
    assert row.metrics["val/loss"].n == 3


def test_different_data_is_named(shown, studied, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(studied / "heads_4/seed_1/version_0", other)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**record, "data_fingerprint": "f" * 64}))
    (other / "config.yaml").write_text(
        re.sub("data_dir: .*", "data_dir: data/poems", (other / "config.yaml").read_text())
    )
    text, errors = shown("heads_1/seed_1", other)
    assert "these runs saw different data" in errors and "data/poems" in errors and "val/bits_per_byte" in errors
    assert "data_dir" in text
    (other / "run.json").write_text(json.dumps(record))  # the same ids in another place
    text, errors = shown("heads_1/seed_1", other)
    assert "different data" not in errors and "data_dir" not in text


def test_markdown_page_and_picture(shown, tmp_path):
    text, _ = shown(".", "--group", "--format", "md", "--html", tmp_path / "p/page.html", "--png", tmp_path / "p.png")
    heading, line, *rows = text.splitlines()
    assert heading.startswith("| run | n_head | val/loss | minus heads_1 |") and set(line) == set("| -")
    assert heading.count("|") == line.count("|") == rows[0].count("|") == rows[1].count("|")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "p/page.html").read_text()
    assert "<svg" in page and "heads_4" in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    data = json.loads(re.search(r"const data = (.*);", page)[1])
    assert [chart["metric"] for chart in data["charts"]] == ["val/loss", "train/loss"]
    curve = data["charts"][1]["curves"][0]
    assert curve["x"] == [1, 2, 3, 4, 5, 6] and len(curve["y"]) == 6


@pytest.mark.skipif(not shutil.which("node"), reason="needs node to run the page's script")
def test_the_page_shows_the_values_under_the_pointer(shown, tmp_path, studied):
    shown("heads_1/seed_1", "heads_4/seed_1", "--metrics", "train/loss", "--html", tmp_path / "page.html")
    program = """
    const text = require('fs').readFileSync(process.argv[1], 'utf8');
    const script = text.slice(text.lastIndexOf('<script>') + 8, text.lastIndexOf('</script>'));
    const size = JSON.parse(script.match(/"size": (\\[[^\\]]+\\])/)[1]), on = {};
    const make = id => ({style: {}, addEventListener: (kind, f) => { on[kind] = f; },
      querySelector: () => ({getBoundingClientRect: () => ({left: 0, top: 0, width: 2 * size[0]})})});
    const made = {charts: make(), tip: make(), line: make()};
    globalThis.document = {getElementById: id => made[id], querySelectorAll: () => []};
    (0, eval)(script + ';globalThis.told = data;');
    const chart = told.charts[0], [left, top, width, height] = chart.frame;
    const at = left + width * (4 - chart.x[0]) / (chart.x[1] - chart.x[0]);
    on.mousemove({clientX: 2 * at, clientY: 2 * (top + height / 2)});
    console.log(made.tip.textContent);
    """
    done = subprocess.run(["node", "-e", program, tmp_path / "page.html"], capture_output=True, text=True, check=True)
    _, *told = done.stdout.strip().splitlines()
    expected = {}
    for heads in HEADS:
        rows = read_metrics(studied / f"heads_{heads}/seed_1/version_0/metrics.jsonl")
        expected[f"heads_{heads}"] = next(row["train/loss"] for row in rows if row["step"] == 4)
    assert len(told) == 2
    for line in told:
        value, name = line.split()
        assert float(value) == pytest.approx(expected[name], rel=1e-4)


def test_bad_input_ends_in_one_line(refused):
    assert re.search("no run in 'heads_x'.*did you mean 'heads_[14]'", refused("heads_x"))
    assert "nothing there holds" in refused("heads_1/seed_1/version_0/checkpoints")
    assert "no run has it, did you mean 'val/loss'" in refused(".", "--metrics", "val/los")
    assert "did you mean 'model.config.n_head'" in refused(".", "--filter", "n_hed=4")
    assert "is no condition" in refused(".", "--filter", "n_head")
    assert "none of 4 run(s) meets it" in refused(".", "--filter", "n_head=3")
    assert "< needs a number" in refused(".", "--filter", "n_head<many")
    assert "no two of these runs differ by their seed only" in refused("heads_1/seed_1", "heads_4/seed_1", "--group")
    assert "up to 1e+09 tokens" in refused(".", "--at", "tokens=1e9")
    assert "write a number or `common`" in refused(".", "--at", "soon")
    assert "'heads_3': no run has it" in refused(".", "--group", "--against", "heads_3")
    assert "may be train/loss or val/loss" in refused(".", "--metrics", "loss")
    assert "runs" in refused()
