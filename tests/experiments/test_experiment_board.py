import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_gpt.callbacks.board import Board
from lightning_gpt.experiments.experiment_board import BoardCell, write_experiment_board

OPTIMIZER = "model.init_args.optimizer"


@pytest.fixture
def cells(tmp_path):
    """Two variants with two seeds; the runs have written rows of their own."""
    made = []
    for variant, overrides in (
        ("adam", {"model.init_args.config.window": None, f"{OPTIMIZER}.init_args.lr": 1e-3}),
        ("muon", {"model.init_args.config.window": 8, OPTIMIZER: {"class_path": "lightning_gpt.optim.Muon"}}),
    ):
        for seed in (1, 2):
            board = Board(str(tmp_path / variant), f"seed_{seed}", 0, hyperparameters={"seed_everything": seed})
            board.log_metrics({"train/loss": 3.0, "val/loss": 2.0 + seed}, 4)
            board.end("success", {"Final/val_loss": 2.0 + seed}, 4)
            board.finalize("success")
            directory = tmp_path / variant / f"seed_{seed}" / "version_0"
            (directory / "config.yaml").write_text(
                json.dumps(
                    {"model": {"init_args": {"optimizer": {"class_path": "x.AdamW", "init_args": {"lr": 0.002}}}}}
                )
            )
            sick = (variant, seed) == ("muon", 2)
            metrics = {} if sick else {"val/loss": 2.0 + seed, "val/bits_per_byte": 1.0}
            made.append(BoardCell(directory, variant, seed, overrides, metrics, "diverged" if sick else "done", 4))
    return made


def test_columns_are_what_the_variants_change(cells, tmp_path, hparams_table):
    path = write_experiment_board(tmp_path, cells, ["val/loss", "val/bits_per_byte"])
    columns, metrics, rows = hparams_table(tmp_path)
    assert path.parent == tmp_path and path.name.endswith(".hparams")
    names = {"variant", "seed", "model.config.window", "model.optimizer", "model.optimizer.lr"}
    assert columns == dict.fromkeys(sorted(names), True)
    assert metrics == ["Final/val_loss", "Final/val_bits_per_byte"]
    first = rows["adam/seed_1/version_0"]
    assert first["status"] == "STATUS_SUCCESS"
    assert {name: first["hparams"][name] for name in names} == {
        "variant": "adam",
        "seed": 1,
        "model.config.window": "null",  # a column has values of one type
        "model.optimizer": "AdamW",  # of config.yaml: this variant does not set it
        "model.optimizer.lr": 0.001,
    }
    assert first["metrics"] == {"Final/val_loss": 3.0, "Final/val_bits_per_byte": 1.0}
    sick = rows["muon/seed_2/version_0"]
    assert (sick["status"], sick["metrics"]) == ("STATUS_FAILURE", {})
    assert (sick["hparams"]["model.config.window"], sick["hparams"]["model.optimizer"]) == ("8", "Muon")


def test_writing_it_again_replaces_it(cells, tmp_path, hparams_table):
    write_experiment_board(tmp_path, cells, ["val/loss"])
    write_experiment_board(tmp_path, cells[:1], ["val/loss"])
    columns, _, rows = hparams_table(tmp_path)
    assert columns == {"variant": False, "seed": False} | dict.fromkeys(columns, False)
    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    assert len(list(cells[0].directory.glob("*tfevents*.hparams"))) == 2  # how it began, how it ended
    assert rows.keys() >= {"adam/seed_1/version_0"}


def test_the_layout_has_a_chart_for_each_metric(cells, tmp_path):
    path = write_experiment_board(tmp_path, cells, ["val/bits_per_byte"])
    (event,) = EventAccumulator(str(path)).Reload().Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {category.title: [chart.title for chart in category.chart] for category in layout.category}
    assert charts["this experiment"] == ["val/bits_per_byte"] and "learning rate" in charts["optimizer"]


def test_no_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no cells to show"):
        write_experiment_board(tmp_path, [], ["val/loss"])
