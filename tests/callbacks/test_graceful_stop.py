import os
import signal

import pytest
from lightning.pytorch import Callback

from lightning_gpt.callbacks.graceful_stop import SIGNALS
from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub.checkpoint import read_checkpoint


class SendSignal(Callback):
    """Sends this process a signal in the middle of an accumulation, within optimizer step 4."""

    number = signal.SIGTERM

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == 3:
            os.kill(os.getpid(), self.number)


class SendInterrupt(SendSignal):
    """As Ctrl-C."""

    number = signal.SIGINT


class SendAnnouncement(SendSignal):
    """As a scheduler some time before the end."""

    number = signal.SIGUSR1


def losses(run):
    return {row["step"]: row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row}


@pytest.mark.parametrize(
    ("sender", "name"),
    [("SendSignal", "SIGTERM"), ("SendInterrupt", "SIGINT"), ("SendAnnouncement", "SIGUSR1")],
)
def test_a_signal_saves_and_the_run_goes_on(lightning_gpt, tmp_path, capsys, sender, name):
    same = ("--model.config.dropout", 0.1, "--trainer.accumulate_grad_batches", 2)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *same, f"--trainer.callbacks+=test_graceful_stop.{sender}")
    assert stop.value.code == 128 + getattr(signal, name)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"stopped by {name}: saved ")
    assert line.endswith("at step 4; continue with --ckpt_path last")
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert lightning_gpt("fit", *same, "--ckpt_path", "last") == run
    assert losses(run) == losses(lightning_gpt("fit", *same))


def test_a_validation_that_is_due_is_done_before_it_leaves(lightning_gpt, tmp_path):
    def validations(run):
        return {row["step"]: row["val/loss"] for row in read_metrics(run / "metrics.jsonl") if "val/loss" in row}

    same = ("--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 4)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *same, "--trainer.callbacks+=test_graceful_stop.SendSignal")
    assert stop.value.code == 143
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert validations(run).keys() == {4}
    lightning_gpt("fit", *same, "--ckpt_path", "last")
    assert validations(run) == validations(lightning_gpt("fit", *same))


def test_a_grace_that_is_none_is_refused(lightning_gpt, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--stop.grace_seconds", 0)
    assert stop.value.code == 2
    assert "stop.grace_seconds=0" in capsys.readouterr().err
