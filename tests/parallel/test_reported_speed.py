"""What several ranks say of their speed: totals of all, shares of each device, time spent in collectives."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics

STEPS = 8
TRAINERS = Path(__file__).parents[2] / "configs" / "trainer"
DATA_RANKS = {"ddp": 2, "fsdp": 2, "tp": 1}
"""Of two processes, how many have batches of their own."""


def settings(tmp_path, **trainer) -> str:
    path = tmp_path / f"settings_{len(list(tmp_path.glob('settings_*')))}.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"max_steps": STEPS, "val_check_interval": STEPS, **trainer}}))
    return str(path)


@pytest.mark.parametrize("strategy", DATA_RANKS)
def test_rates_are_totals_and_the_share_is_measured(strategy, processes, recipe, tmp_path):
    # Widths at which a step is some milliseconds of computing, and gradients some of sending.
    share = {
        "class_path": "lightning_gpt.callbacks.CommunicationShare",
        "init_args": {"after": 2, "steps": 3, "path": "share.json"},
    }
    here = {"accelerator": "cpu", "devices": 2, "precision": "32-true", "log_every_n_steps": 2}
    stacked = settings(tmp_path, **here, callbacks=[share])
    words = [
        "-c",
        recipe,
        "-c",
        TRAINERS / f"{strategy}.yaml",
        "-c",
        stacked,
        "--run.dir",
        tmp_path / "runs",
        "--model.config.n_embd",
        128,
    ]
    words = [str(word) for word in [*words, "--data.batch_size", 8, "--trainer.accumulate_grad_batches", 2]]

    def train(rank: int) -> float | None:
        from lightning_gpt.callbacks import TrainingMetrics
        from lightning_gpt.cli.training import run_training

        callbacks = run_training("fit", words).trainer.callbacks
        return next(one for one in callbacks if isinstance(one, TrainingMetrics))._peak

    peak = processes(2, train, timeout=120)[0].value
    run = tmp_path / "runs" / "tiny" / "version_0"
    rows = read_metrics(run / "metrics.jsonl")
    logged = [row for row in rows if "speed/tokens_per_second" in row]
    per_step = DATA_RANKS[strategy] * 2 * 8 * 16  # ranks, micro-batches, windows, tokens
    assert [row["progress/tokens"] for row in logged] == [per_step * step for step in (2, 4, 6, 8)]
    for row in logged:
        # Operations of both ranks over the peak of both devices.
        assert row["speed/mfu"] == pytest.approx(row["speed/tflops"] * 1e12 / (2 * peak))
    (told,) = [row for row in rows if "speed/communication_share" in row]
    assert told["step"] == 5
    content = json.loads((run / "share.json").read_text())
    assert content["steps"] == 3 and content["communication_share"] == told["speed/communication_share"]
    names = {"gloo:all_gather", "gloo:all_reduce"} if strategy == "fsdp" else {"gloo:all_reduce"}
    for rank in content["ranks"]:
        assert names <= rank["collectives"].keys()
        assert 0 < rank["exposed_seconds"] <= rank["collective_seconds"] < rank["step_seconds"]
    shares = [rank["exposed_seconds"] / rank["step_seconds"] for rank in content["ranks"]]
    assert content["communication_share"] == pytest.approx(sum(shares) / 2)
    assert 0 < content["communication_share"] + content["communication_hidden"] < 1


def test_uneven_ranks_are_counted_by_what_each_has(processes, answer_rows, tiny_model, tmp_path):
    """Rows of different length: the total is the sum over ranks, not one rank's count times their number."""
    recipe = {
        "run": {"name": "sft", "tensorboard": False, "dir": str(tmp_path / "runs")},
        "model": {"class_path": "lightning_gpt.tasks.SFT", "init_args": {"init_from": str(tiny_model)}},
        "data": {
            "class_path": "lightning_gpt.data.InstructionData",
            "init_args": {"train": str(answer_rows), "batch_size": 2, "max_length": 64},
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 2},
        "samples": {"tokens": 0},
        "curve": {"enabled": False},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(recipe))
    common = ["fit", "-c", path, "-c", settings(tmp_path, limit_val_batches=0)]
    processes(2, [*common, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--run.name", "two"], timeout=120)
    processes(1, [*common, "--trainer.devices", 1, "--data.batch_size", 4, "--run.name", "one"], timeout=120)
    seen = []
    for name in ("two", "one"):
        rows = read_metrics(tmp_path / "runs" / name / "version_0" / "metrics.jsonl")
        seen.append([row["progress/tokens"] for row in rows if "progress/tokens" in row])
    assert seen[0] == seen[1] and len(seen[0]) == STEPS // 2
