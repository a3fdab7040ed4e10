import pytest
import torch
from lightning import LightningDataModule
from lightning.pytorch import Trainer

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.nn import GPTConfig
from lightning_gpt.optim import SGD, Constant
from lightning_gpt.tasks import Pretraining

SHAPE = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}


class Batches(LightningDataModule):
    """Given batches in their order."""

    batch_size, block_size, bytes_per_token = 4, 8, 1.0

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def uneven_batch():
    """Sixteen windows; the share of targets that is masked falls from nearly all to none."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (16, 8), generator=generator)
    targets = torch.randint(11, (16, 8), generator=generator)
    kept = torch.rand(16, 8, generator=generator) < torch.linspace(0.1, 1, 16)[:, None]
    return {"input_ids": ids, "targets": targets.masked_fill(~kept, -100)}


def train(batches, accumulate, tmp_path, steps=2):
    torch.manual_seed(0)
    task = Pretraining(GPTConfig(**SHAPE), SGD(lr=0.5, momentum=0.0), Constant())
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, datamodule=Batches(batches))
    return task


def losses(run, key="train/loss"):
    return {row["step"]: row[key] for row in read_metrics(run / "metrics.jsonl") if key in row}


@pytest.mark.parametrize("parts", [(4, 4, 4, 4), (1, 7, 3, 5)])
def test_accumulation_is_the_mean_over_every_counted_token(parts, clean_process, tmp_path):
    whole = uneven_batch()
    pieces = zip(*(value.split(parts) for value in whole.values()))
    micro = [dict(zip(whole, piece)) for piece in pieces]
    accumulated, at_once = train(micro * 2, 4, tmp_path), train([whole] * 2, 1, tmp_path)
    torch.manual_seed(0)
    direct = Pretraining(GPTConfig(**SHAPE))
    direct.configure_model()
    for _ in range(2):
        logits = direct.net(whole["input_ids"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole["targets"].flatten(), ignore_index=-100)
        gradients = torch.autograd.grad(loss, list(direct.net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(direct.net.parameters(), gradients):
                parameter -= 0.5 * gradient
    torch.testing.assert_close(at_once.net.state_dict(), direct.net.state_dict(), rtol=0, atol=2e-6)
    torch.testing.assert_close(accumulated.net.state_dict(), direct.net.state_dict(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("documents", ["join", "separate"])
def test_four_times_four_is_sixteen(documents, lightning_gpt):
    same = ("--data.documents", documents, "--trainer.gradient_clip_val", 0.5)
    four = lightning_gpt("fit", *same, "--data.batch_size", 4, "--trainer.accumulate_grad_batches", 4)
    sixteen = lightning_gpt("fit", *same, "--data.batch_size", 16)
    for key in ("train/loss", "optim/gradient_norm", "val/loss"):
        assert losses(four, key) == pytest.approx(losses(sixteen, key), rel=2e-4), key
    assert losses(four, "progress/tokens") == losses(sixteen, "progress/tokens")


@pytest.mark.parametrize("documents", ["join", "separate"])
def test_two_processes_are_one(documents, lightning_gpt, one_thread):
    same = ("--data.documents", documents, "--data.val_batch_size", 7)
    one = lightning_gpt("fit", *same, "--data.batch_size", 4)
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp_fork", "--data.batch_size", 2, "--samples.tokens", 3)
    two = lightning_gpt("fit", *same, *two, "--run.tensorboard", "true", "--last.every_n_steps", 2)
    assert (two / "samples.txt").exists()
    for key in ("train/loss", "optim/gradient_norm", "val/loss", "progress/tokens"):
        assert losses(two, key) == pytest.approx(losses(one, key), rel=1e-4), key


def test_logged_loss_is_the_mean_since_the_last_log(lightning_gpt):
    every = losses(lightning_gpt("fit", "--data.documents", "separate"))
    thirds = losses(lightning_gpt("fit", "--data.documents", "separate", "--trainer.log_every_n_steps", 3))
    assert sorted(thirds) == [3, 6]
    # Windows lose up to a few targets at document boundaries: the means differ by their weights only.
    assert thirds[6] == pytest.approx((every[4] + every[5] + every[6]) / 3, rel=2e-3)
    every = losses(lightning_gpt("fit"))
    thirds = losses(lightning_gpt("fit", "--trainer.log_every_n_steps", 3))
    assert thirds[6] == pytest.approx((every[4] + every[5] + every[6]) / 3, rel=1e-6)


def test_fused_optimizer_clips_under_bfloat16(lightning_gpt):
    bf16 = ("--trainer.precision", "bf16-mixed", "--model.optimizer.fused", "true")
    free = lightning_gpt("fit", *bf16, "--trainer.gradient_clip_val", "null")
    clipped = lightning_gpt("fit", *bf16, "--trainer.gradient_clip_val", 0.1)
    assert losses(free)[1] == losses(clipped)[1]
    assert losses(free, "optim/gradient_norm")[1] == pytest.approx(losses(clipped, "optim/gradient_norm")[1])
    assert losses(free)[6] != losses(clipped)[6]
    full = lightning_gpt("fit", "--trainer.gradient_clip_val", "null")
    assert losses(free) == pytest.approx(losses(full), rel=0.01)


def test_settings_of_a_resumed_run_win_over_the_checkpoint(lightning_gpt):
    constant = ("--model.schedule", "lightning_gpt.optim.Constant", "--model.schedule.warmup_steps", 0)
    first = lightning_gpt("fit", "--trainer.max_steps", 4, *constant)
    assert losses(first, "optim/lr")[4] == 0.01
    changed = ("--model.optimizer.lr", 0.002, "--model.optimizer.weight_decay", 0.03)
    resumed = lightning_gpt("fit", *constant, *changed, "--ckpt_path", "last")
    assert resumed == first
    assert losses(resumed, "optim/lr") == {1: 0.01, 2: 0.01, 3: 0.01, 4: 0.01, 5: 0.002, 6: 0.002}
    (state,) = read_checkpoint(resumed / "checkpoints" / "last.ckpt")["optimizer_states"]
    assert sorted(group["weight_decay"] for group in state["param_groups"]) == [0.0, 0.03]


def test_a_longer_schedule_takes_over(lightning_gpt):
    short = lightning_gpt("fit", "--trainer.max_steps", 4)
    longer = lightning_gpt("fit", "--trainer.max_steps", 8, "--ckpt_path", "last")
    assert longer == short
    rates = losses(longer, "optim/lr")
    straight = losses(lightning_gpt("fit", "--trainer.max_steps", 8), "optim/lr")
    assert {step: rates[step] for step in (5, 6, 7, 8)} == {step: straight[step] for step in (5, 6, 7, 8)}


def test_another_optimizer_cannot_go_on(lightning_gpt, capsys):
    lightning_gpt("fit", "--trainer.max_steps", 2)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--model.optimizer", "lightning_gpt.optim.MuonAdamW", "--ckpt_path", "last")
    assert stop.value.code == 2
    assert "state of AdamW, model.optimizer is MuonAdamW" in capsys.readouterr().err


def test_no_end_no_schedule(lightning_gpt, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--trainer.max_steps", -1, "--trainer.max_epochs", 1)
    assert stop.value.code == 2
    assert "trainer.max_steps=-1" in capsys.readouterr().err.splitlines()[-1]
