import re
import resource

import pytest
import torch
from lightning.pytorch import Callback

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import open_model
from lightning_gpt.hub.checkpoint import read_checkpoint


class Poison(Callback):
    """Makes a weight infinite before optimizer step 5."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            with torch.no_grad():
                pl_module.net.final_norm.weight[0] = float("inf")


class FullDisk(Callback):
    """From optimizer step 5 on no file of this process may grow beyond 30 kB."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class LostStorage(Callback):
    """At optimizer steps 3 and 4 nothing can be written."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (writing := trainer.strategy.checkpoint_io._pending) is not None:
            writing.exception()  # the step before is written under its own conditions
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000 if trainer.global_step in (2, 3) else hard, hard))


class DieInValidation(Callback):
    """As a kill in the validation of optimizer step 3."""

    def on_validation_epoch_start(self, trainer, pl_module):
        if trainer.global_step == 3:
            raise RuntimeError("died")


class ScoresOfAScript(Callback):
    """Replaces what validation measured."""

    def on_validation_epoch_end(self, trainer, pl_module):
        scores = {1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 1.0, 6: 1.5}
        pl_module.log("score", scores[trainer.global_step])


@pytest.fixture
def free_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def losses(run, key="train/loss"):
    return {row["step"]: row[key] for row in read_metrics(run / "metrics.jsonl") if key in row}


def step_of(path) -> int:
    return read_checkpoint(path)["global_step"]


def test_a_sick_run_stops_and_keeps_the_last_good_checkpoint(lightning_gpt, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--trainer.callbacks+=test_checkpoints.Poison", "--last.every_n_steps", 1)
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("lightning-gpt: error: the loss is nan in optimizer step 5")
    assert "last good checkpoint is kept" in line
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert step_of(run / "checkpoints" / "last.ckpt") == 4
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in open_model(run)[0].parameters())
    straight = lightning_gpt("fit", "--run.name", "healthy")
    assert losses(lightning_gpt("fit", "--ckpt_path", "last")) == losses(straight)


def test_a_full_disk_keeps_the_old_checkpoint(lightning_gpt, free_disk, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--trainer.callbacks+=test_checkpoints.FullDisk", "--last.every_n_steps", 2)
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not save a checkpoint" in line
    assert "File too large" in line  # the reason, which torch hides behind a RuntimeError
    assert re.search(r"the previous \S+/(best|last).ckpt is untouched", line)
    checkpoints = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    assert step_of(checkpoints / "last.ckpt") == 4
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    free = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))
    assert losses(lightning_gpt("fit", "--ckpt_path", "last")) == losses(lightning_gpt("fit", "--run.name", "free"))


def test_best_is_ranked_by_the_validation_of_its_own_step(lightning_gpt):
    scripted = ("--trainer.callbacks+=test_checkpoints.ScoresOfAScript", "--trainer.val_check_interval", 1)
    run = lightning_gpt("fit", *scripted, "--best.monitor", "score")
    assert step_of(run / "checkpoints" / "best.ckpt") == 2
    run = lightning_gpt("fit", *scripted, "--best.monitor", "score", "--best.mode", "max")
    assert step_of(run / "checkpoints" / "best.ckpt") == 1


def test_best_is_measured_again_from_its_file(lightning_gpt):
    run = lightning_gpt("fit", "--trainer.val_check_interval", 1, "--trainer.max_steps", 8, "--model.optimizer.lr", 0.1)
    scores = losses(run, "val/loss")
    best = run / "checkpoints" / "best.ckpt"
    assert step_of(best) == min(scores, key=scores.get)
    again = lightning_gpt("validate", "--ckpt_path", best)
    (score,) = losses(again, "val/loss").values()
    assert score == pytest.approx(min(scores.values()), rel=1e-6)


def test_a_record_survives_a_resume_but_not_another_directory(lightning_gpt):
    scripted = ("--trainer.callbacks+=test_checkpoints.ScoresOfAScript", "--best.monitor", "score")
    every = ("--trainer.val_check_interval", 1)
    run = lightning_gpt("fit", *scripted, *every, "--trainer.max_steps", 4)
    resumed = lightning_gpt("fit", *scripted, *every, "--ckpt_path", "last")
    assert resumed == run
    assert step_of(run / "checkpoints" / "best.ckpt") == 2
    last = run / "checkpoints" / "last.ckpt"
    other = lightning_gpt("fit", "--run.name", "other", "--ckpt_path", last, "--trainer.max_steps", 9)
    assert other != run
    assert step_of(other / "checkpoints" / "best.ckpt") == 9


def test_resuming_from_best_repeats_nothing(lightning_gpt):
    same = ("--model.config.dropout", 0.1, "--model.schedule.decay_steps", 6)
    straight = lightning_gpt("fit", *same)
    lightning_gpt("fit", "--run.name", "cut", *same, "--trainer.max_steps", 3)
    cut = lightning_gpt("fit", "--run.name", "cut", *same, "--ckpt_path", "best")
    for key in ("train/loss", "val/loss", "optim/lr", "progress/tokens"):
        assert losses(cut, key) == losses(straight, key), key


def test_a_validation_that_a_kill_cut_short_is_made_up(lightning_gpt):
    same = ("--last.every_n_steps", 1, "--model.config.dropout", 0.1)
    with pytest.raises(RuntimeError, match="died"):
        lightning_gpt("fit", *same, "--trainer.callbacks+=test_checkpoints.DieInValidation")
    resumed, straight = lightning_gpt("fit", *same, "--ckpt_path", "last"), lightning_gpt("fit", *same)
    for key in ("train/loss", "val/loss"):
        assert losses(resumed, key) == losses(straight, key), key


def test_saves_by_steps_and_at_the_end(lightning_gpt, capsys):
    run = lightning_gpt("fit", "--last.every_n_steps", 4, "--last.every_n_minutes", "null")
    assert step_of(run / "checkpoints" / "last.ckpt") == 6
    for option in ("--last.every_n_steps", "--last.every_n_minutes"):
        with pytest.raises(SystemExit) as stop:
            lightning_gpt("fit", option, 0)
        assert stop.value.code == 2
        assert f"{option[2:]}=0" in capsys.readouterr().err


def test_an_unknown_metric_to_rank_by_is_named(lightning_gpt, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--best.monitor", "val/los")
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "best.monitor='val/los'" in line
    assert "val/loss" in line


def test_storage_that_fails_for_a_while_does_not_end_a_run(lightning_gpt, free_disk, tmp_path):
    lost = ("--trainer.callbacks+=test_checkpoints.LostStorage", "--last.every_n_steps", 1)
    with pytest.warns(UserWarning, match="training goes on, 1 more failure in a row would end it"):
        run = lightning_gpt("fit", *lost, "--last.tolerated_failures", 2)
    assert step_of(run / "checkpoints" / "last.ckpt") == 6
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *lost, "--last.tolerated_failures", 1, "--run.name", "strict")
    assert stop.value.code == 1
    assert step_of(tmp_path / "runs" / "strict" / "version_0" / "checkpoints" / "last.ckpt") == 2


def test_written_in_the_background_it_is_the_same_checkpoint(lightning_gpt):
    often = ("--last.every_n_steps", 1, "--model.config.dropout", 0.1, "--model.schedule.decay_steps", 6)
    often += ("--trainer.max_steps",)
    straight = lightning_gpt("fit", *often, 6)
    background = ("--last.asynchronous", "true", "--best.asynchronous", "true", "--last.keep_previous", "true")
    lightning_gpt("fit", *background, "--run.name", "background", *often, 4)
    run = lightning_gpt("fit", *background, "--run.name", "background", *often, 6, "--ckpt_path", "last")
    assert losses(run) == losses(straight)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (read_checkpoint(place / "checkpoints" / name) for place in (run, straight))
        assert ours["global_step"] == theirs["global_step"]
        for weight, tensor in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][weight], tensor)
    assert step_of(run / "checkpoints" / "previous.ckpt") == 6  # the last step's save by number, then the run's last


def test_a_damaged_last_checkpoint_is_refused_and_a_whole_one_named(lightning_gpt, capsys):
    run = lightning_gpt("fit", "--last.keep_previous", "true")
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    for verb, option in (("fit", "--trainer.max_steps=7"), ("validate", "--trainer.limit_val_batches=1")):
        with pytest.raises(SystemExit) as stop:
            lightning_gpt(verb, option, "--ckpt_path", last)
        assert stop.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "last.ckpt is damaged (the checksum of" in line
        assert "best.ckpt is whole: name it instead" in line
    assert best.exists()
    with pytest.raises(ValueError, match=r"last.ckpt is damaged .*best.ckpt is whole"):
        open_model(last)


def test_another_global_batch_is_told(lightning_gpt):
    lightning_gpt("fit")
    with pytest.warns(UserWarning, match="an optimizer step takes 6 samples from here, it took 4"):
        lightning_gpt("fit", "--trainer.max_steps", 7, "--ckpt_path", "last", "--data.batch_size", 6)


def test_failures_in_the_background_are_counted_and_the_last_save_is_tried_all_the_same(lightning_gpt, free_disk):
    background = ("--last.asynchronous", "true", "--best.asynchronous", "true", "--last.every_n_steps", 1)
    lost = ("--trainer.callbacks+=test_checkpoints.LostStorage", "--trainer.val_check_interval", 1)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *background, *lost, "--last.tolerated_failures", 1)
    assert stop.value.code == 1
    two = ("--last.tolerated_failures", 2)
    run = lightning_gpt("fit", *background, *lost, *two, "--run.name", "patient", "--trainer.max_steps", 8)
    assert step_of(run / "checkpoints" / "last.ckpt") == 8
    scores = losses(run, "val/loss")
    assert step_of(run / "checkpoints" / "best.ckpt") == min(scores, key=scores.get)
    # Its last save is one more try, however many failed in a row before; here that fails too.
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *background, *lost, *two, "--trainer.max_steps", 4, "--run.name", "short")
    assert stop.value.code == 1
