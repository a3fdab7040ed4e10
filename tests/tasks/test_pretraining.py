import json
import math

import numpy as np
import pytest
import torch
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer


def losses(run, key="train/loss"):
    return {row["step"]: row[key] for row in read_metrics(run / "metrics.jsonl") if key in row}


def error_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_validation_loss_is_the_mean_over_every_validation_token(lightning_gpt, corpus):
    run = lightning_gpt("fit")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6]
    net, tokenizer = open_model(run / "checkpoints" / "last.ckpt")
    ids = torch.from_numpy(np.fromfile(corpus / "val_00000.bin", dtype="<u2").astype(np.int64))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 16):
            window = ids[start : start + 17]
            logits = net(window[None, :-1])[0]
            total += torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    loss = total / (len(ids) - 1)
    last = next(row for row in reversed(rows) if "val/loss" in row)
    assert last["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert last["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    size = json.loads((corpus / "meta.json").read_text())["splits"]["val"]["bytes"]
    assert size > len(tokenizer.decode(ids.tolist()).replace("<|endoftext|>", ""))  # two-byte letters
    assert last["val/bits_per_byte"] == pytest.approx(loss * len(ids) / math.log(2) / size, rel=1e-6)


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_checkpoint_is_evaluated_alone(lightning_gpt, verb, capsys):
    run = lightning_gpt("fit")
    expected = losses(run, "val/loss")[6]
    checkpoint = run / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    evaluated = lightning_gpt(verb, "--ckpt_path", checkpoint, "--data.val_batch_size", 5)
    prefix = "val" if verb == "validate" else "test"
    assert list(losses(evaluated, f"{prefix}/loss").values()) == [pytest.approx(expected, rel=1e-6)]
    said = capsys.readouterr()
    assert f"loss {expected:.4f}" in said.out
    assert said.err.splitlines() == ["changed since the checkpoint: data.init_args.val_batch_size: 16 -> 5"]
    assert len(losses(run)) == 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activation_checkpointing_changes_nothing(lightning_gpt, precision):
    same = ("--model.config.dropout", 0.1, "--trainer.precision", precision)
    plain = losses(lightning_gpt("fit", *same))
    for every in (1, 2):
        assert losses(lightning_gpt("fit", *same, "--model.activation_checkpointing", every)) == plain


@pytest.mark.slow
def test_compiled_losses_are_the_same(lightning_gpt):
    plain, compiled = lightning_gpt("fit"), lightning_gpt("fit", "--model.compile", "true")
    for key in ("train/loss", "val/loss"):
        assert losses(compiled, key) == pytest.approx(losses(plain, key), rel=1e-4)
    assert open_model(compiled)[0].config == open_model(plain)[0].config


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("AdamW8bit", {"lr": 0.01, "min_8bit_size": 0}), ("MuonAdamW", {"lr": 0.02}), ("SGD", {"lr": 0.1})],
)
def test_optimizers_train_and_resume_from_yaml(lightning_gpt, optimizer, settings):
    choice = {
        "model": {"init_args": {"optimizer": {"class_path": f"lightning_gpt.optim.{optimizer}", "init_args": settings}}}
    }
    run = lightning_gpt("fit", choice, "--trainer.max_steps", 12)
    straight = losses(run)
    assert straight[12] < straight[1] - 0.15
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["class_path"] == f"lightning_gpt.optim.{optimizer}"
    fixed = (choice, "--model.schedule.decay_steps", 12, "--run.name", "resumed")
    lightning_gpt("fit", *fixed, "--trainer.max_steps", 7)
    resumed = lightning_gpt("fit", *fixed, "--trainer.max_steps", 12, "--ckpt_path", "last")
    assert losses(resumed) == straight


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions_of_a_cpu(lightning_gpt, precision):
    run = lightning_gpt("fit", "--trainer.precision", precision, "--trainer.max_steps", 12)
    assert losses(run)[12] < losses(run)[1] - 0.15


def test_a_network_overfits_one_batch(lightning_gpt):
    run = lightning_gpt(
        "fit", "--trainer.overfit_batches", 1, "--trainer.max_steps", 150, "--trainer.val_check_interval", 150
    )
    assert losses(run)[150] < 0.3


def test_llama_parts_train(lightning_gpt):
    parts = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 1, "bias": False}
    run = lightning_gpt("fit", {"model": {"init_args": {"config": parts}}}, "--trainer.max_steps", 12)
    assert losses(run)[12] < losses(run)[1] - 0.15


def test_weights_to_start_from(lightning_gpt):
    first = lightning_gpt("fit")
    small = ("--trainer.max_steps", 1, "--model.optimizer.lr", 1e-12, "--trainer.val_check_interval", 1)
    second = lightning_gpt("fit", *small, "--model.init_from", first / "checkpoints" / "last.ckpt")
    assert second != first
    assert losses(second, "val/loss")[1] == pytest.approx(losses(first, "val/loss")[6], rel=1e-5)
    assert losses(second, "progress/tokens") == {1: 64}


def test_weights_that_do_not_fit_are_refused(lightning_gpt, tmp_path, corpus, capsys):
    shape = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    save_model(tmp_path / "bytes", GPT(GPTConfig(**shape, vocab_size=257)), byte_tokenizer(end_of_text=True))
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--model.init_from", tmp_path / "bytes")
    assert stop.value.code == 2
    assert "has another tokenizer" in error_line(capsys)
    ours = Tokenizer.from_json((corpus / "tokenizer.json").read_text())
    save_model(tmp_path / "short", GPT(GPTConfig(**shape, vocab_size=ours.vocab_size)), ours)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--model.init_from", tmp_path / "short")
    assert stop.value.code == 2
    assert "data.block_size=16 is larger than the model's block_size=8" in error_line(capsys)


def test_a_checkpoint_of_another_shape_names_the_fields(lightning_gpt, capsys):
    lightning_gpt("fit", "--trainer.max_steps", 1)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--model.config.n_layer", 3, "--ckpt_path", "last")
    assert stop.value.code == 2
    assert "n_layer: 2 there, 3 here" in error_line(capsys)


def test_wrong_activation_checkpointing(lightning_gpt, capsys):
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", "--model.activation_checkpointing", -1)
    assert stop.value.code == 2
    assert "activation_checkpointing=-1" in error_line(capsys)
