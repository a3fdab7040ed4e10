import csv
import json
import math

import pytest

from lightning_gpt.cli import main


def write_run(directory, loss, steps=range(20, 1001, 20), **more):
    directory.mkdir(parents=True)
    rows = [{"step": step, "train/loss": loss(step), "optim/gradient_norm": 1.0, "optim/lr": 1e-3} for step in steps]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    facts = {"vocab_size": 84, "unigram": 3.33, "max_steps": 1000, "update_per_lr": 50}
    (directory / "diagnosis.json").write_text(json.dumps({"format": 1, "facts": facts, "findings": []}))
    return directory


def learning(step):
    return 1.9 + 2.5 * math.exp(-step / 150)


@pytest.fixture
def healthy(tmp_path):
    return write_run(tmp_path / "runs" / "healthy", learning)


@pytest.fixture
def stuck(tmp_path):
    return write_run(tmp_path / "runs" / "stuck", lambda step: 3.34)


def said(capsys, *args):
    main(["diagnose", *map(str, args)])
    return capsys.readouterr()


def test_findings_come_with_evidence_and_advice(healthy, stuck, capsys, clean_process):
    out = said(capsys, healthy, stuck).out
    lines = out.splitlines()
    assert lines[0] == f"{healthy}: healthy (step 1000 of 1000, training loss {learning(1000):.3f})"
    assert any(line.startswith(f"{stuck}: plateau (step 1000 of 1000") for line in lines)
    text = " ".join(out.split())
    assert "critical: plateau: the training loss stays at 3.340" in text
    assert "-> If the rate is right, look at the data" in text
    assert "could not look for: data_bottleneck (not logged: data_wait)" in text
    assert max(len(line) for line in lines[1:] if ": " not in line or line.startswith("  ")) <= 118


def test_brief_is_a_line_a_run_and_directories_are_searched(healthy, stuck, capsys, clean_process):
    out = said(capsys, healthy.parent, "--brief").out
    assert [line.partition(": ")[2].split(" ")[0] for line in out.splitlines()] == ["healthy", "plateau"]


def test_bad_runs_are_named_and_the_others_judged(healthy, tmp_path, capsys, clean_process):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "metrics.jsonl").write_text("\x00\x01 no json\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text('{"step": 1, "accuracy": 0.5}\n')
    told = said(capsys, tmp_path / "nowhere", empty, noise, other, healthy)
    assert told.out.startswith(f"{healthy}: healthy")
    errors = told.err.splitlines()
    assert len(errors) == 5
    assert all(line.startswith("error: ") for line in errors)
    for name in ("nowhere", "empty", "noise", "other"):
        assert any(name in line for line in errors)
    assert f"error: {other} holds no training loss (of accuracy none is known as one)" in errors


def test_a_run_that_is_cut_off_is_judged_as_far_as_it_goes(tmp_path, capsys, clean_process):
    run = write_run(tmp_path / "killed", learning, steps=range(20, 601, 20))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 620, "train/lo')
    assert "healthy (step 600 of 1000" in said(capsys, run).out


def test_a_run_too_short_is_not_called_healthy(tmp_path, capsys, clean_process):
    run = write_run(tmp_path / "short", learning, steps=range(20, 101, 20))
    assert f"{run}: cannot be judged: too short: 5 logged losses" in said(capsys, run).out


def test_runs_of_other_programs(tmp_path, capsys, clean_process):
    from lightning.pytorch.loggers import TensorBoardLogger

    board = TensorBoardLogger(tmp_path, name="board", version=0)
    for step in range(10, 501, 10):
        board.log_metrics({"train_loss": 6 + 0.02 * step, "lr-AdamW": 0.5}, step)
    board.finalize("success")
    table = tmp_path / "table"
    table.mkdir()
    with open(table / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train_loss", "val_loss", "epoch"])
        writer.writeheader()
        for step in range(10, 501, 10):
            writer.writerow({"step": step, "train_loss": 4 * math.exp(-step / 300) + 0.1, "epoch": 0})
            if step % 100 == 0:
                writer.writerow({"step": step, "val_loss": 2 + step / 500, "epoch": 0})
    out = said(capsys, tmp_path / "board", table).out
    assert "version_0: rate_too_high (" in out
    assert "table: overfitting (" in out


def test_a_diverged_run_says_where(tmp_path, capsys, clean_process):
    run = write_run(tmp_path / "diverged", learning, steps=range(20, 61, 20))
    content = json.loads((run / "diagnosis.json").read_text())
    place = "the loss is nan in optimizer step 70; the first that is not finite is the output of blocks.1.x (Linear)"
    content["findings"] = [{"rule": "non_finite", "severity": "critical", "step": 70, "message": place, "advice": ""}]
    (run / "diagnosis.json").write_text(json.dumps(content))
    text = " ".join(said(capsys, run).out.split())
    assert f"{run}: non_finite (" in text
    assert place in text


def test_what_was_seen_and_passed_is_told(healthy, capsys, clean_process):
    content = json.loads((healthy / "diagnosis.json").read_text())
    content["findings"] = [
        {"rule": "oscillating_loss", "severity": "warning", "step": 300, "message": "m", "advice": ""}
    ]
    (healthy / "diagnosis.json").write_text(json.dumps(content))
    assert "seen at step 300, not any more: oscillating_loss: m" in said(capsys, healthy).out


def test_settings_and_corpus_are_found_from_a_run(tmp_path, corpus, capsys, clean_process):
    run = write_run(tmp_path / "plain", lambda step: 3.3)
    (run / "diagnosis.json").unlink()
    (run / "config.yaml").write_text(f"data: {{init_args: {{data_dir: {corpus}}}}}\ntrainer: {{max_steps: 1000}}\n")
    from lightning_gpt.cli.diagnose import signals_of
    from lightning_gpt.data.corpus_meta import CorpusMeta
    from lightning_gpt.experiments.run_reader import read_run

    facts = signals_of(read_run(run)).facts
    meta = CorpusMeta.load(corpus)
    assert facts.vocab_size == meta.tokenizer.vocab_size
    assert facts.train_tokens == meta.split("train").tokens
    assert 2 < facts.unigram < math.log(facts.vocab_size)
    assert facts.max_steps == 1000


def test_a_figure_without_room_for_all_shows_the_last(healthy, stuck, tmp_path, capsys, clean_process):
    from types import SimpleNamespace

    from lightning_gpt.cli.diagnosis_figure import columns

    sick, well = SimpleNamespace(findings=["plateau"]), SimpleNamespace(findings=[])
    judged = [(name, None, sick if name.isupper() else well) for name in "aBCdEFGHi"]
    assert "".join(name for name, _, _ in columns(judged)) == "CEFGH"
    assert "".join(name for name, _, _ in columns(judged[:5])) == "BCEad"
    assert "".join(name for name, _, _ in columns(judged[-4:] + judged[:1] + judged[3:4])) == "FGHad"
    more = [write_run(tmp_path / f"more_{number}", lambda step: 3.34) for number in range(4)]
    told = said(capsys, healthy, stuck, *more, "--figure", tmp_path / "signals.png")
    assert "signals.png (5 of 6 runs, the newest with findings first)" in told.err


def test_the_figure_is_drawn(healthy, stuck, tmp_path, capsys, clean_process):
    import matplotlib.image

    path = tmp_path / "pictures" / "signals.png"
    told = said(capsys, healthy, stuck, "--figure", path)
    assert f"figure: {path}" in told.err
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 700
    assert height > 400
