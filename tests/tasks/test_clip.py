"""CLIP learns, goes on exactly, and its gradients are those of one big batch in chunks and over processes."""

import json

import pytest
import torch
from PIL import Image

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub.clip_directory import open_clip_model
from lightning_gpt.text.trained import train_tokenizer

NAMES = ("red", "green", "blue", "black", "yellow", "grey", "purple", "orange")
NETWORK = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": 8,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "vocab_size": 320,
        "pool_type": "eos",
        "eos_id": 0,
        "pad_id": 1,
    },
}
ADAMW = {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.0}}


@pytest.fixture
def model(tmp_path):
    """Settings of towers whose tokenizer knows the captions' words."""
    words = [f"a {size} {name} square" for name in NAMES for size in ("small", "large")]
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer("bpe", 320, words * 5).to_json())
    return lambda **settings: {"network": NETWORK, "tokenizer": str(path), "optimizer": ADAMW, **settings}


def data(squares, **settings) -> dict:
    return {
        "train": str(squares),
        "val": str(squares),
        "zero_shot": str(squares),
        "batch_size": 8,
        "num_workers": 0,
        "augmentation": {},
        **settings,
    }


def column(run, key: str) -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


BEST = ("--best.monitor=val/r1", "--best.mode=max")


def test_the_chance_level_is_told(post_train, model, squares, capsys):
    post_train("CLIP", "ImageTextData", model(), data(squares, batch_size=16), "--trainer.max_steps=1", *BEST)
    assert "chance level of train/loss with 16 pairs in a batch: 2.773\n" in capsys.readouterr().err


@pytest.mark.parametrize(("loss", "steps"), [("InfoNCE", 60), ("SigLIP", 160)])
def test_it_learns_to_find_pictures_and_to_classify(post_train, model, squares, loss, steps):
    settings = model(
        loss={"class_path": f"lightning_gpt.objectives.contrastive.{loss}"},
        templates=["a small {} square", "a large {} square"],
    )
    rows = data(squares, batch_size=16, transfer=str(squares))
    run = post_train("CLIP", "ImageTextData", settings, rows, f"--trainer.max_steps={steps}", *BEST)
    assert column(run, "val/r1")[-1] > 0.7
    assert column(run, "val/zero_shot_top1")[-1] == column(run, "val/zero_shot_class_mean_top1")[-1] > 0.7
    assert column(run, "val/transfer_r1") == column(run, "val/r1")
    assert all(1 <= scale <= 100 for scale in column(run, "train/logit_scale"))
    assert column(run, "progress/pairs")[-1] == steps * 16
    assert (run / "retrieval.png").stat().st_size > 1000 and (run / "similarity.png").exists()
    opened = open_clip_model(run)
    pictures = [Image.open(squares.parent / f"large_{name}.png").convert("RGB") for name in NAMES]
    similar = opened.embed_pictures(pictures) @ opened.embed_texts([f"a large {name} square" for name in NAMES]).T
    assert (similar.argmax(1) == torch.arange(8)).float().mean() > 0.7


def stepped(post_train, model, squares, name: str, settings: dict, rows: dict, *options: str, lr: float = 1.0) -> dict:
    """Weights after one step of plain SGD; at rate 1 they have moved by the gradients, with the sign turned."""
    sgd = {
        "optimizer": {"class_path": "lightning_gpt.optim.SGD", "init_args": {"lr": lr, "momentum": 0.0}},
        "schedule": {"class_path": "lightning_gpt.optim.Constant"},
    }
    run = post_train(
        "CLIP",
        "ImageTextData",
        model(**settings, **sgd),
        data(squares, **rows),
        "--trainer.max_steps=1",
        "--trainer.gradient_clip_val=null",
        *BEST,
        *options,
        name=name,
    )
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


@pytest.mark.parametrize("loss", ["InfoNCE", "SigLIP"])
def test_two_processes_and_chunks_give_the_gradient_of_one_batch(post_train, model, squares, one_thread, loss):
    settings = {"loss": {"class_path": f"lightning_gpt.objectives.contrastive.{loss}"}}
    start = stepped(post_train, model, squares, "start", settings, {"batch_size": 8}, lr=1e-30)
    one = stepped(post_train, model, squares, "one", settings, {"batch_size": 8})
    assert max((one[name] - start[name]).abs().max() for name in one) > 0.1
    two = ("--trainer.devices=2", "--trainer.strategy=ddp_fork")
    others = {
        "two processes": stepped(post_train, model, squares, "two", settings, {"batch_size": 4}, *two),
        "chunks": stepped(post_train, model, squares, "chunks", {**settings, "chunk_size": 3}, {"batch_size": 8}),
        "both": stepped(post_train, model, squares, "both", {**settings, "chunk_size": 3}, {"batch_size": 4}, *two),
    }
    for other in others.values():
        for name, weights in one.items():
            ours, theirs = other[name] - start[name], weights - start[name]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_resuming_equals_never_stopping(post_train, model, squares):
    settings = model(schedule={"class_path": "lightning_gpt.optim.Constant"})
    rows = data(squares, augmentation={"scale": [0.5, 1.0]})

    def run(name: str, steps: int, *more: str):
        options = (f"--trainer.max_steps={steps}", "--trainer.val_check_interval=100", *BEST, *more)
        return post_train("CLIP", "ImageTextData", settings, rows, *options, name=name)

    run("stopped", 3)
    runs = [run("stopped", 8, "--ckpt_path=last"), run("straight", 8)]
    states = [torch.load(one / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for one in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_locked_image_tower_does_not_move(post_train, model, squares):
    network = {**NETWORK, "vision_cfg": {"image_size": 32, "timm_model_name": "resnet10t"}}
    first = post_train("CLIP", "ImageTextData", model(network=network), data(squares), *BEST, name="first")
    locked = post_train(
        "CLIP",
        "ImageTextData",
        {**model(network=network), "lock_image": True, "image_weights": str(first)},
        data(squares),
        *BEST,
        name="locked",
    )
    before, after = (open_clip_model(run).net.state_dict() for run in (first, locked))
    best, last = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for r in (first, locked)
    )
    del before, after
    theirs = torch.load(first / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    for name, weights in last.items():
        if name.startswith("net.visual.trunk."):
            assert torch.equal(weights, theirs[name]), name
    assert not torch.equal(last["net.visual.head.proj.weight"], theirs["net.visual.head.proj.weight"])
    assert not torch.equal(last["net.text.token_embedding.weight"], best["net.text.token_embedding.weight"])


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, ("--trainer.accumulate_grad_batches=2",), "another objective.*model.chunk_size"),
        ({"chunk_size": 0}, (), "chunk_size=0"),
        ({"init_from": "nowhere"}, (), "either model.network"),
        ({"network": None, "init_from": "no/such"}, (), "no/such is neither"),
        ({"image_weights": "efficientnet-lite0"}, (), "does not fit the image tower"),
        ({"network": {"vision_cfg": {"image_size": 30, "patch_size": 8}}}, (), "image_size=30 is no multiple"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(post_train, model, squares, capsys, settings, options, message):
    import re

    with pytest.raises(SystemExit):
        post_train("CLIP", "ImageTextData", {**model(), **settings}, data(squares), *options)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last


def test_long_captions_are_counted(post_train, model, squares):
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    rows[0]["caption"] = "a very long story about a red square that nobody will read to its end"
    table = squares.parent / "long.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"1 of 16 captions are longer than the text tower's 8 tokens"):
        post_train("CLIP", "ImageTextData", model(), data(table, zero_shot=None), "--trainer.max_steps=1", *BEST)
