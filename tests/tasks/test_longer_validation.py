import pytest
import torch
from torch.nn import functional as F

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import open_model


def test_losses_beyond_the_training_window(lightning_gpt, corpus):
    alibi = {"model": {"init_args": {"config": {"position": "alibi"}}}}
    run = lightning_gpt("fit", alibi, "--data.val_block_size", "40")
    row = [row for row in read_metrics(run / "metrics.jsonl") if "val/loss" in row][-1]
    assert {key for key in row if "_at_" in key} == {"val/loss_at_16", "val/loss_at_32", "val/loss_at_40"}

    from lightning_gpt.data import TokenData

    net, _ = open_model(run / "checkpoints" / "last.ckpt")
    assert net.config.block_size == 40
    data = TokenData(data_dir=corpus, block_size=16, val_block_size=40, val_batch_size=8)
    data.setup("validate")
    sums, counts = torch.zeros(40), torch.zeros(40)
    with torch.no_grad():
        for batch in data.val_dataloader():
            targets = batch["targets"]
            losses = F.cross_entropy(net(batch["input_ids"]).transpose(1, 2), targets, reduction="none")
            sums += losses.sum(0)
            counts += (targets != -100).sum(0)
    assert row["val/loss"] == pytest.approx((sums.sum() / counts.sum()).item(), rel=1e-4)
    for end, part in ((16, slice(0, 16)), (32, slice(16, 32)), (40, slice(32, 40))):
        expected = (sums[part].sum() / counts[part].sum()).item()
        assert row[f"val/loss_at_{end}"] == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_is_read_further_with_other_wavelengths(lightning_gpt, capsys):
    """Of an evaluation alone: training on keeps what the checkpoint has, and a learned table has no more rows."""
    rotary = {"model": {"init_args": {"config": {"position": "rotary"}}}}
    trained = lightning_gpt("fit", rotary) / "checkpoints" / "last.ckpt"
    longer = ("--ckpt_path", trained, "--data.block_size", 40)
    scaled = ("--model.config.rope_scaling", "{kind: yarn, factor: 4, original_block_size: 16}")
    found = {}
    for name, more in (("plain", ()), ("yarn", scaled)):
        run = lightning_gpt("validate", rotary, "--run.name", name, *longer, *more)
        (found[name],) = [row["val/loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert found["plain"] != found["yarn"]
    with pytest.raises(SystemExit):
        lightning_gpt("fit", rotary, *longer, *scaled, "--trainer.max_steps", 8)
    assert "block_size: 16 there, 40 here; rope_scaling: None there" in capsys.readouterr().err
    learned = lightning_gpt("fit", "--run.name", "learned") / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit):
        lightning_gpt("validate", "--ckpt_path", learned, "--data.block_size", 40)
    assert "(block_size: 16 there, 40 here)" in capsys.readouterr().err
