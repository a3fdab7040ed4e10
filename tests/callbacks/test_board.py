import json
import os
import signal

import pytest
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.callbacks.run_settings import curated_settings, flat_settings

BOARD = {"run": {"tensorboard": True}}
WILD = {
    "model": {"init_args": {"optimizer": {"class_path": "lightning_gpt.optim.SGD", "init_args": {"lr": 1e30}}}},
    "trainer": {"gradient_clip_val": None},
}


class Stop(Callback):
    """Asks the run to stop within its fourth step."""

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_has_a_row_of_chosen_settings_and_final_metrics(studied, hparams_table):
    run = studied / "heads_4/seed_2/version_0"
    _, metrics, rows = hparams_table(run.parent)
    (row,) = rows.values()
    assert row["status"] == "STATUS_SUCCESS"
    assert (
        row["hparams"].items()
        >= {
            "model": "Pretraining",
            "model.config.n_embd": 32,
            "model.config.qk_norm": True,  # not at its default
            "model.optimizer": "AdamW",
            "model.optimizer.lr": 0.01,
            "model.schedule.warmup_steps": 2,
            "data.batch_size": 4,
            "trainer.max_steps": 6,
            "seed_everything": 2,
        }.items()
    )
    assert len(row["hparams"]) <= 28
    logged = {key: value for line in read_metrics(run / "metrics.jsonl") for key, value in line.items()}
    assert row["metrics"]["Final/val_loss"] == pytest.approx(logged["val/loss"])
    assert row["metrics"]["Final/train_loss"] == pytest.approx(logged["train/loss"])
    assert row["metrics"]["Final_cost/tokens"] == 6 * 4 * 16
    assert row["metrics"]["Final_cost/seconds"] > 0
    assert "Final/val_loss" in metrics[:5]  # what TensorBoard shows unasked
    assert "hp_metric" not in metrics
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["step"], record["attempts"]) == ("done", 6, 1)
    assert record["peak_memory_bytes"] > 2**26


def test_columns_that_differ_come_first(studied, hparams_table):
    columns, _, rows = hparams_table(studied)
    differing = [name for name, differs in columns.items() if differs]
    assert differing == list(columns)[: len(differing)]
    assert set(differing) == {"model.config.n_head", "seed_everything"}
    assert rows["heads_1/seed_1/version_0"]["hparams"]["model.config.n_head"] == 1


def test_a_diverged_run_is_in_the_table(lightning_gpt, tmp_path, hparams_table):
    with pytest.raises(SystemExit):
        lightning_gpt("fit", BOARD, WILD)
    (row,) = hparams_table(tmp_path / "runs")[2].values()
    assert row["status"] == "STATUS_FAILURE" and row["hparams"]["model.optimizer.lr"] == 1e30
    record = json.loads((tmp_path / "runs/tiny/version_0/run.json").read_text())
    assert record["status"] == "diverged" and "in optimizer step" in record["message"]


def test_a_stopped_run_is_in_the_table_and_a_resumed_one_replaces_it(lightning_gpt, tmp_path, hparams_table):
    stopper = {"trainer": {"callbacks": [{"class_path": f"{__name__}.Stop"}]}}
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", BOARD, stopper)
    assert stop.value.code == 128 + 15
    run = tmp_path / "runs/tiny/version_0"
    (row,) = hparams_table(run.parent)[2].values()
    assert row["status"] == "STATUS_FAILURE" and row["metrics"]["Final/val_loss"] > 1
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"

    lightning_gpt("fit", BOARD, "--ckpt_path", "last", "--model.optimizer.lr", 0.02)
    (row,) = hparams_table(run.parent)[2].values()
    assert (row["status"], row["hparams"]["model.optimizer.lr"]) == ("STATUS_SUCCESS", 0.02)
    assert row["metrics"]["Final_cost/tokens"] == 6 * 4 * 16
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["attempts"], record["step"]) == ("done", 2, 6)
    steps = [one.step for one in EventAccumulator(str(run)).Reload().Scalars("train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_charts_lay_runs_over_another(studied):
    events = EventMultiplexer().AddRunsFromDirectory(str(studied))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(studied))
    scalars = ScalarsPlugin(TBContext(data_provider=provider))
    plugin = CustomScalarsPlugin(TBContext(data_provider=provider, plugin_name_to_instance={"scalars": scalars}))
    layout = json.loads(plugin.layout_impl(RequestContext(), ""))
    charts = {chart["title"]: chart["multiline"]["tag"] for one in layout["category"] for chart in one["chart"]}
    assert {"validation", "learning rate", "gradient norm", "tokens per second"} <= charts.keys()
    assert len(layout["category"]) == 4  # once, not once a run
    found = {}
    for title, (tag,) in charts.items():
        for name in ("heads_1", "heads_4"):
            body = plugin.scalars_impl(RequestContext(), f"{name}/seed_1/version_0", tag, "")
            found[title, name] = {tag: len(points) for tag, points in body["tag_to_events"].items()}
    assert found["validation", "heads_1"] == found["validation", "heads_4"] == {"val/loss": 2}
    assert found["training and validation", "heads_1"] == {"val/loss": 2, "train/loss": 6}
    assert found["learning rate", "heads_4"] == {"optim/lr": 6}


def test_validation_alone_writes_no_row(lightning_gpt, studied, tmp_path, hparams_table):
    last = studied / "heads_4/seed_1/version_0/checkpoints/last.ckpt"
    lightning_gpt("validate", BOARD, "--ckpt_path", last, "--model.config.n_head", 4, "--model.config.qk_norm", "true")
    assert hparams_table(tmp_path / "runs")[2] == {}


def test_flat_names_are_those_of_the_command_line():
    config = {
        "model": {
            "class_path": "a.Pretraining",
            "init_args": {"config": {"n_layer": 2, "moe": None}, "optimizer": {"class_path": "b.Muon"}},
        },
        "seed_everything": 1,
    }
    assert flat_settings(config) == {
        "model": "Pretraining",
        "model.config.n_layer": 2,
        "model.config.moe": None,
        "model.optimizer": "Muon",
        "seed_everything": 1,
    }
    assert curated_settings(config) == {
        "model": "Pretraining",
        "model.config.n_layer": 2,
        "model.optimizer": "Muon",
        "seed_everything": 1,
    }
