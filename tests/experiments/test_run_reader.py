import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_gpt.cli import main
from lightning_gpt.experiments.run_finder import find_runs, short_names
from lightning_gpt.experiments.run_reader import read_run


class Line(LightningModule):
    """A line through noise, with what a stranger logs."""

    def __init__(self, lr: float = 0.1, optimizer: str = "sgd", shape: tuple = (1, 2)):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """board/version_0 and 1 of TensorBoardLogger, csv/version_0 of CSVLogger; rates 0.1, 0.2 and 0.3."""
    place = tmp_path_factory.mktemp("foreign")
    for logger, lr in (
        (TensorBoardLogger(place, name="board", default_hp_metric=False), 0.1),
        (TensorBoardLogger(place, name="board", default_hp_metric=False), 0.2),
        (CSVLogger(place, name="csv"), 0.3),
    ):
        torch.manual_seed(0)
        data = torch.utils.data.DataLoader(torch.randn(40, 1), batch_size=2)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=logger,
            log_every_n_steps=2,
            val_check_interval=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Line(lr), data, data)
    return place


def test_a_foreign_runs_settings_and_curves(foreign):
    board, _, table = (read_run(path) for path in find_runs([str(foreign)]))
    assert board.settings == {"lr": 0.1, "optimizer": "sgd", "shape": [1, 2]}
    assert table.settings["lr"] == 0.3
    with open(foreign / "csv/version_0/metrics.csv", newline="") as file:
        logged = [(int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(file) if row["train_loss"]]
    assert list(zip(table.series["train_loss"].steps, table.series["train_loss"].values)) == logged
    assert len(board.series["train_loss"].steps) == 10 and len(board.series["val_loss"].steps) == 2
    assert board.series["train_loss"].values.dtype == np.float64
    assert board.seconds > 0 and table.seconds is None
    assert board.axis("time", np.array([19]))[0] > 0
    assert board.axis("tokens", np.array([19])) is None
    assert board.warnings == table.warnings == []


def test_foreign_runs_are_compared(foreign, capsys):
    main(["compare", str(foreign), "--sort", "lr"])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["run", "lr", "val_loss", "train_loss"]
    assert [row.split()[:2] for row in rows] == [
        ["board/version_0", "0.1"],
        ["board/version_1", "0.2"],
        ["csv/version_0", "0.3"],
    ]
    main(["compare", str(foreign), "--at", "time=common", "--metrics", "train_loss"])
    out, err = capsys.readouterr()
    assert "csv/version_0: does not log seconds of training" in err and "values at" in out
    with pytest.raises(SystemExit):
        main(["compare", str(foreign), "--x", "tokens", "--at", "common"])
    assert "no run says how its steps lie on 'tokens'" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_event_file_is_used_as_far_as_it_goes(foreign, tmp_path, capsys, damage):
    (whole,) = (foreign / "board/version_0").glob("*tfevents*")
    content = bytearray(whole.read_bytes())
    if damage == "cut":
        content = content[: len(content) * 2 // 3]
    else:
        content[len(content) * 2 // 3] ^= 255
    sick = tmp_path / "sick"
    sick.mkdir()
    (sick / whole.name).write_bytes(content)
    run = read_run(sick)
    assert 2 <= len(run.series["train_loss"].steps) < 10
    (warning,) = run.warnings
    assert whole.name in warning and "used as far as it can be read" in warning
    main(["compare", str(foreign / "board"), str(sick)])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4 and whole.name in err


def test_noise_in_place_of_an_event_file_leaves_the_others(foreign, tmp_path, capsys):
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "events.out.tfevents.1.host").write_bytes(bytes(range(256)) * 8)
    main(["compare", str(foreign / "board"), str(noise)])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and "holds no numbers and is left out" in err
    with pytest.raises(SystemExit):
        main(["compare", str(noise)])
    assert "logged a number" in capsys.readouterr().err.splitlines()[-1]


def test_damaged_rows_and_settings_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n')
    (tmp_path / "config.yaml").write_text("a: [1\n")
    (tmp_path / "hparams.yaml").write_text("model: !!python/object:some.where.Net\n  width: 8\nseed: 3\n")
    run = read_run(tmp_path)
    assert list(run.series["loss"].values) == [2.0]
    assert run.settings == {"model.width": 8, "seed": 3}
    assert ["damaged after 1 of 3 rows" in run.warnings[0], "is not YAML" in run.warnings[1]] == [True, True]
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2.0\n2,many\n3,1.5\n")
    run = read_run(tmp_path)
    assert list(run.series["loss"].values) == [2.0, 1.5] and "line 3" in run.warnings[0]


def test_more_than_ten_thousand_scalars_are_all_read(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    for step in range(10_050):
        writer.add_scalar("loss", step, step)
    writer.close()
    assert read_run(tmp_path).series["loss"].steps.tolist() == list(range(10_050))


def test_patterns_lead_to_runs_once_and_in_natural_order(tmp_path):
    for name in ("a/version_2", "a/version_10", "b/version_0"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    expected = [tmp_path / name for name in ("a/version_2", "a/version_10", "b/version_0")]
    assert find_runs([str(tmp_path)]) == expected
    assert find_runs([f"{tmp_path}/**", f"{tmp_path}/a"]) == expected
    assert find_runs([f"{tmp_path}/*/version_0/metrics.jsonl"]) == expected[2:]
    assert short_names(expected) == ["a/version_2", "a/version_10", "b/version_0"]
    assert short_names([tmp_path / "x/seed_1/version_0", tmp_path / "y/seed_1/version_0"]) == ["x", "y"]
