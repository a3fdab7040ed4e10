import pytest
from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.callbacks.loss_curve import draw_loss_curve


@pytest.fixture
def board():
    def read(run):
        events = EventAccumulator(str(run), size_guidance={SCALARS: 0, TENSORS: 0})
        events.Reload()
        return events

    return read


def test_everything_that_a_run_leaves(lightning_gpt, board):
    run = lightning_gpt(
        "fit",
        *("--run.tensorboard", "true", "--curve.enabled", "true"),
        *("--samples.tokens", 12, "--samples.prompts", '["to be", "\\n"]'),
    )
    assert {"checkpoints", "config.yaml", "loss.png", "metrics.jsonl", "samples.txt"} < {p.name for p in run.iterdir()}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    parts = (run / "samples.txt").read_text(encoding="utf-8").split("--- step ")[1:]
    assert [part.splitlines()[0] for part in parts] == [
        "3, prompt 0 ---",
        "3, prompt 1 ---",
        "6, prompt 0 ---",
        "6, prompt 1 ---",
    ]
    assert parts[0].splitlines()[1].startswith("to be")
    events = board(run)
    for row in read_metrics(run / "metrics.jsonl"):
        for key in row.keys() - {"step"}:
            points = {event.step: event.value for event in events.Scalars(key)}
            assert points[row["step"]] == pytest.approx(row[key], rel=1e-6), key
    assert [event.step for event in events.Tensors("samples/0/text_summary")] == [3, 6]
    assert "hp_metric" not in events.Tags()["scalars"]


def measured(run):
    rows = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith(("speed/", "memory/"))} for row in rows]


def test_samples_change_nothing_in_training(lightning_gpt):
    same = ("--model.config.dropout", 0.2)
    assert measured(lightning_gpt("fit", *same, "--samples.tokens", 5)) == measured(lightning_gpt("fit", *same))


def test_a_resumed_run_writes_each_step_once(lightning_gpt, board):
    on = ("--run.tensorboard", "true", "--samples.tokens", 4, "--model.schedule.decay_steps", 6)
    lightning_gpt("fit", *on, "--best.mode", "max", "--trainer.max_steps", 5)
    run = lightning_gpt("fit", *on, "--ckpt_path", "best")  # of step 3
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "diagnosis/update_ratio" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6]
    events = board(run)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("val/loss")] == [3, 6]


def test_a_run_without_tensorboard_or_validation(lightning_gpt):
    run = lightning_gpt("fit", "--trainer.limit_val_batches", 0, "--samples.tokens", 4, "--curve.enabled", "true")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert not any("val/loss" in row for row in rows)
    assert (run / "loss.png").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert not list(run.glob("events*"))


def test_fast_dev_run_leaves_nothing(lightning_gpt, tmp_path):
    lightning_gpt("fit", "--trainer.fast_dev_run", "true", "--samples.tokens", 4)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_loss_has_a_picture_and_no_warning(tmp_path, recwarn):
    """PPO of fewer steps than the logging interval: matplotlib would complain of an empty legend."""
    draw_loss_curve([{"step": 6, "val/score": 0.1}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and not recwarn.list
