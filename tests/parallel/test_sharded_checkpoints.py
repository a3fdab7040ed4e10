"""A checkpoint of any strategy on any number of processes is continued under any other, and used outside."""

import re
import resource

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub.checkpoint import read_checkpoint, verify_checkpoint

SHARDED = {"class_path": "lightning_gpt.parallel.FullySharded"}
STRATEGIES = {
    "one": (1, "auto"),
    "ddp": (2, "ddp"),
    "whole": (2, SHARDED),
    "sharded": (2, SHARDED | {"init_args": {"sharded_checkpoints": True}}),
}
JOURNEY = ["sharded", "one", "sharded", "ddp", "whole", "one"]
"""One step under each; every ordered pair of neighbours is a resume."""


@pytest.fixture
def train(processes, recipe, tmp_path):
    """train("sharded", *options): a run of the recipe under a strategy, 4 windows a step on all processes together."""

    def run(name: str, *options: object, timeout: float = 60, **more) -> list:
        devices, strategy = STRATEGIES[name]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"trainer": {"devices": devices, "strategy": strategy}}))
        command = ["fit", "-c", recipe, "-c", path, "--data.batch_size", 4 // devices, "--trainer.val_check_interval"]
        command += [3, "--model.schedule.decay_steps", len(JOURNEY), *options]
        return processes(devices, command, timeout=timeout, **more)

    return run


def by_step(run, key) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_metrics(run / "metrics.jsonl") if key in row}


def test_every_strategy_continues_every_other(train, tmp_path):
    runs = tmp_path / "runs" / "tiny"
    train("one", "--trainer.max_steps", len(JOURNEY), "--run.name", "straight")
    straight = tmp_path / "runs" / "straight" / "version_0"
    last = runs / "version_0" / "checkpoints" / "last.ckpt"
    for step, strategy in enumerate(JOURNEY, 1):
        resume = ["--ckpt_path", "last"] if step > 1 else []
        train(strategy, "--trainer.max_steps", step, *resume)
        assert last.is_dir() == (strategy == "sharded")
        verify_checkpoint(last)
    # float32 sums over one and two processes round differently, and Adam divides small gradients by themselves
    for key, error in {"train/loss": 2e-5, "val/loss": 2e-5, "optim/gradient_norm": 1e-3, "optim/lr": 0}.items():
        there, here = by_step(straight, key), by_step(runs / "version_0", key)
        shared = there if key != "val/loss" else [step for step in there if step in here]
        assert {step: here[step] for step in shared} == pytest.approx({step: there[step] for step in shared}, rel=error)
    ours, theirs = read_checkpoint(last), read_checkpoint(straight / "checkpoints" / "last.ckpt")
    assert ours["global_step"] == theirs["global_step"] == len(JOURNEY)
    assert ours["TokenData"] == theirs["TokenData"]
    assert ours["lightning_gpt"]["tokens_seen"] == theirs["lightning_gpt"]["tokens_seen"]
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], tensor, rtol=0, atol=2e-4)
    states, others = (content["optimizer_states"][0]["state"] for content in (ours, theirs))
    assert states.keys() == others.keys()
    for number, state in others.items():
        assert state.keys() == states[number].keys()
        assert states[number]["step"] == state["step"] == len(JOURNEY)
        torch.testing.assert_close(states[number]["exp_avg"], state["exp_avg"], rtol=0, atol=2e-4)


class FullDisk(Callback):
    """From optimizer step 3 on the disk of one rank is full."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2 and trainer.global_rank == self.rank:
            trainer.strategy.checkpoint_io.wait()  # step 2 is saved
            resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("strategy", ["sharded", "ddp"])
def test_all_ranks_learn_of_a_full_disk(strategy, train, tmp_path):
    full = {"class_path": "test_sharded_checkpoints.FullDisk", "init_args": {"rank": int(strategy == "sharded")}}
    options = ["--last.every_n_steps", 1, "--last.asynchronous", "true", "--last.tolerated_failures", 1]
    options += ["--trainer.callbacks+", yaml.safe_dump(full, default_flow_style=True), "--trainer.limit_val_batches", 0]
    outcomes = train(strategy, "--trainer.max_steps", 9, *options, check=False)
    assert [outcome.code for outcome in outcomes] == [1, 1]
    (line,) = (line for one in outcomes for line in one.text.splitlines() if line.startswith("lightning-gpt: error:"))
    assert re.search(r"rank \d: \[Errno 27\] could not save a checkpoint \(", line)
    assert "last.ckpt is untouched" in line
    run = tmp_path / "runs" / "tiny" / "version_0"
    verify_checkpoint(run / "checkpoints" / "last.ckpt")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert len(list((run / "checkpoints").iterdir())) == (2 if strategy == "sharded" else 1)
    # The failure of step 3 was noticed and tolerated at step 4, that of step 4 was one too many at step 5.
    assert max(by_step(run, "train/loss")) == 5


def test_two_processes_are_resumed_exactly(train, tmp_path):
    same = ["--model.config.dropout", 0.1, "--trainer.log_every_n_steps", 3]
    train("ddp", *same, "--trainer.max_steps", 6, "--run.name", "straight")
    train("ddp", *same, "--trainer.max_steps", 2)
    train("ddp", *same, "--trainer.max_steps", 6, "--ckpt_path", "last")
    runs = [tmp_path / "runs" / name / "version_0" for name in ("straight", "tiny")]
    there, here = (by_step(run, "train/loss") for run in runs)
    # A window of the log that a resume cuts is summed in another order.
    assert here == pytest.approx(there, rel=1e-6)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adapters_travel_too(processes, tiny_model, answer_rows, tmp_path):
    """LoRA: the checkpoint holds only what learns."""
    settings = {
        "run": {"name": "lora", "tensorboard": False, "dir": str(tmp_path / "runs")},
        "model": {
            "class_path": "lightning_gpt.tasks.SFT",
            "init_args": {"init_from": str(tiny_model), "lora": {"rank": 4}},
        },
        "data": {
            "class_path": "lightning_gpt.data.InstructionData",
            "init_args": {"train": str(answer_rows), "max_length": 64},
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1, "limit_val_batches": 0},
        "samples": {"tokens": 0},
        "curve": {"enabled": False},
    }
    settings["model"]["init_args"]["schedule"] = {
        "class_path": "lightning_gpt.optim.Linear",
        "init_args": {"decay_steps": 2},
    }

    def train(name: str, strategy: str, steps: int, *options: str) -> dict[int, float]:
        devices, settings["trainer"]["strategy"] = STRATEGIES[strategy]
        settings["trainer"] |= {"devices": devices, "max_steps": steps}
        settings["data"]["init_args"]["batch_size"] = 4 // devices
        settings["run"]["name"] = name
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        processes(devices, ["fit", "-c", path, *options])
        return by_step(tmp_path / "runs" / name / "version_0", "train/loss")

    train("lora", "sharded", 1)
    last = tmp_path / "runs" / "lora" / "version_0" / "checkpoints" / "last.ckpt"
    assert last.is_dir()
    assert all("lora" in name for name in read_checkpoint(last)["state_dict"])
    assert train("lora", "one", 2, "--ckpt_path", "last") == pytest.approx(train("straight", "one", 2), rel=2e-5)
