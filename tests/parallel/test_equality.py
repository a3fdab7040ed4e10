"""Two or four processes are one process on the same global batch, whatever they are spread by."""

import json
import os
import random

import pytest
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.hub.checkpoint import read_checkpoint

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = GPT2 | {
    "n_kv_head": 2,
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
# A clip value below every gradient norm of these runs.
COMMON = {"max_steps": 4, "log_every_n_steps": 1, "val_check_interval": 4, "gradient_clip_val": 0.3}

STRATEGIES = {
    "ddp": (2, 2, "ddp"),  # processes, of them with data of their own, strategy
    "fsdp": (2, 2, {"class_path": "lightning_gpt.parallel.FullySharded"}),
    "tp": (2, 1, {"class_path": "lightning_gpt.parallel.TensorParallel"}),
    "fsdp_tp": (4, 2, {"class_path": "lightning_gpt.parallel.FullySharded", "init_args": {"tensor_parallel": 2}}),
    "hsdp": (4, 4, {"class_path": "lightning_gpt.parallel.FullySharded", "init_args": {"shard_size": 2}}),
}


def pretraining(corpus, config, accumulate, optimizer="AdamW"):
    settings = {"lr": 0.01} if optimizer == "AdamW" else {"lr": 0.02, "adam_lr": 0.01, "precision": "fp32"}
    return {
        "model": {
            "class_path": "lightning_gpt.tasks.Pretraining",
            "init_args": {
                "config": config,
                "optimizer": {"class_path": f"lightning_gpt.optim.{optimizer}", "init_args": settings},
            },
        },
        "data": {
            "class_path": "lightning_gpt.data.TokenData",
            # 19 validation windows a batch: the last batches of two ranks and of one are filled up unevenly
            "init_args": {"data_dir": str(corpus), "block_size": 16, "val_batch_size": 19, "documents": "separate"},
        },
        "trainer": COMMON | {"accumulate_grad_batches": accumulate},
    }


def fine_tuning(model, rows, val, accumulate):
    return {
        "model": {
            "class_path": "lightning_gpt.tasks.SFT",
            "init_args": {
                "init_from": str(model),
                "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 0.003}},
            },
        },
        "data": {
            "class_path": "lightning_gpt.data.InstructionData",
            "init_args": {"train": str(rows), "val": str(val), "val_batch_size": 1},
        },
        "trainer": COMMON | {"accumulate_grad_batches": accumulate},
    }


@pytest.fixture(scope="session")
def recipes(corpus, tiny_model, tmp_path_factory):
    """By name; global batches of eight."""
    place = tmp_path_factory.mktemp("answers")
    draw = random.Random(2)
    words = "one two three four five six seven".split()
    rows = [  # answers of 1 to 9 words: ranks and micro-batches have unequal numbers of targets
        {"prompt": f"{n}:", "completion": " " + " ".join(draw.choices(words, k=draw.randint(1, 9)))} for n in range(33)
    ]
    answers, one = place / "answers.jsonl", place / "one.jsonl"  # only the first rank has something to validate
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows[:32]))
    one.write_text(json.dumps(rows[32]) + "\n")
    return {
        "gpt2": pretraining(corpus, GPT2, 1),
        "llama": pretraining(corpus, LLAMA, 2),
        "muon": pretraining(corpus, LLAMA, 1, "MuonAdamW"),
        "sft": fine_tuning(tiny_model, answers, one, 2),
    }


def arguments(recipe, place, name, ranks, devices, strategy):
    """Of `lightning-gpt fit` for one recipe, its batch shared out to so many ranks."""
    settings = json.loads(json.dumps(recipe))
    settings["data"]["init_args"]["batch_size"] = 8 // ranks // settings["trainer"]["accumulate_grad_batches"]
    settings["trainer"] |= {"accelerator": "cpu", "devices": devices, "strategy": strategy}
    settings |= {"run": {"name": name, "dir": str(place), "tensorboard": False}}
    settings |= {"samples": {"tokens": 0}, "curve": {"enabled": False}, "diagnosis": {"enabled": False}}
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["fit", "-c", str(path)]


@pytest.fixture(scope="session")
def alone(recipes, tmp_path_factory):
    """Where one process has run every recipe."""
    place, before = tmp_path_factory.mktemp("alone"), dict(os.environ)
    for name, recipe in recipes.items():
        main(arguments(recipe, place, name, 1, 1, "auto"))
    os.environ.clear()
    os.environ.update(before)
    return place


def results(place, name):
    run = place / name / "version_0"
    rows = read_metrics(run / "metrics.jsonl")
    keys = ("train/loss", "val/loss", "optim/gradient_norm", "progress/tokens")
    measured = {key: [row[key] for row in rows if key in row] for key in keys}
    assert [len(values) for values in measured.values()] == [4, 1, 4, 4]
    return measured, read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_processes_are_one(strategy, recipes, alone, processes, tmp_path):
    devices, ranks, setting = STRATEGIES[strategy]
    commands = [arguments(recipe, tmp_path, name, ranks, devices, setting) for name, recipe in recipes.items()]
    processes(devices, lambda rank: [main(command) for command in commands] and None, timeout=180)
    for name in recipes:
        (theirs, one), (ours, many) = results(alone, name), results(tmp_path, name)
        for key, values in theirs.items():
            print(strategy, name, key, max(abs(a-b)/abs(b) for a,b in zip(ours[key], values)))
        assert min(theirs["optim/gradient_norm"]) > COMMON["gradient_clip_val"]
        assert one["state_dict"].keys() == many["state_dict"].keys()
        print(strategy, name, "weights", max((many["state_dict"][k]-v).abs().max().item() for k,v in one["state_dict"].items()))
