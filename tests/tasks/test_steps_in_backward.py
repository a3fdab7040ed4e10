"""The option from YAML: the same run, resumed from either kind, and what does not go with it."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.optim import AdamW
from lightning_gpt.tasks.steps_in_backward import stepping_in_backward

PLAIN = ("--trainer.gradient_clip_val", "null")
ON = (*PLAIN, "--model.optimizer", "lightning_gpt.optim.AdamW", "--model.optimizer.in_backward", "true")
OFF = (*PLAIN, "--model.optimizer", "lightning_gpt.optim.AdamW")


def rows(run):
    keys = ("train/loss", "val/loss", "optim/gradient_norm", "optim/lr")
    return [{key: row[key] for key in keys if key in row} for row in read_metrics(run / "metrics.jsonl")]


def test_a_run_is_the_same_and_goes_on_from_either_kind(lightning_gpt):
    whole = rows(lightning_gpt("fit", *OFF, "--run.name", "off"))
    assert any("val/loss" in row for row in whole)
    stepping = rows(lightning_gpt("fit", *ON, "--run.name", "on"))
    for one, two in zip(whole, stepping, strict=True):
        assert one.pop("optim/gradient_norm", 0) == pytest.approx(two.pop("optim/gradient_norm", 0), rel=1e-5)
        assert one == two
    for first, second in ((ON, OFF), (OFF, ON)):
        name = ("--run.name", "first" if first is ON else "second")
        run = lightning_gpt("fit", *first, *name, "--trainer.max_steps", 3, "--model.schedule.decay_steps", 6)
        lightning_gpt("fit", *second, *name, "--model.schedule.decay_steps", 6, "--ckpt_path", "last")
        for one, two in zip(whole, rows(run), strict=True):
            two.pop("optim/gradient_norm", 0)
            assert one == two


def test_with_recomputation_too(lightning_gpt):
    whole = rows(lightning_gpt("fit", *OFF))
    for setting in ("selective", 0.5):
        both = rows(lightning_gpt("fit", *ON, "--model.activation_checkpointing", setting))
        assert [row.get("train/loss") for row in both] == [row.get("train/loss") for row in whole]


def test_masked_targets_keep_their_exact_mean(post_train, tiny_model, answer_rows):
    losses = []
    for flag in (False, True):
        optimizer = {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 3e-3, "in_backward": flag}}
        model = {"init_from": str(tiny_model), "optimizer": optimizer}
        data = {"train": str(answer_rows), "val": str(answer_rows), "max_length": 32}
        run = post_train(
            "SFT", "InstructionData", model, data, "--trainer.gradient_clip_val", "null", name=f"run_{flag}"
        )
        losses.append([row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trainer.accumulate_grad_batches", 2), "a gradient is used up with its micro-batch; set it to 1"),
        (("--trainer.gradient_clip_val", 1.0), "set trainer.gradient_clip_val to null"),
    ],
)
def test_what_needs_all_gradients_is_refused(lightning_gpt, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", *ON, *options)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model.optimizer.in_backward=true with" in line and message in line


def test_ddp_and_steps_of_several_passes_are_refused():
    optimizer = AdamW().build(torch.nn.Linear(2, 2))
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "barebones": True}
    with pytest.raises(ValueError, match="with DDP: gradients are averaged after the update; use one device or"):
        stepping_in_backward(optimizer, Trainer(strategy="ddp", **settings), True, False)
    with pytest.raises(ValueError, match="this task's step is more than one backward pass"):
        stepping_in_backward(optimizer, Trainer(**settings), False, False)
    with pytest.warns(UserWarning, match="compiled losses give all gradients at once"):
        stepping_in_backward(optimizer, Trainer(**settings), True, True)
