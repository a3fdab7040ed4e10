"""The trainer files start and save the files of one process; mistakes are named in one line."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_gpt.hub import load_checkpoint
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.parallel import FullySharded, TensorParallel
from lightning_gpt.parallel.apply import compile_blocks

CONFIGS = Path(__file__).parents[2] / "configs" / "trainer"
SHARDED = "lightning_gpt.parallel.FullySharded"
CUT = "lightning_gpt.parallel.TensorParallel"


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """A file to stack: what tensor parallelism has most to do with."""
    config = {"feed_forward": "swiglu", "n_head": 4, "n_kv_head": 2, "qkv_bias": True, "tie_embeddings": False}
    stacked = tmp_path_factory.mktemp("network") / "network.yaml"
    stacked.write_text(yaml.safe_dump({"model": {"init_args": {"config": config}}, "trainer": {"max_steps": 2}}))
    return stacked


@pytest.mark.parametrize(("file", "devices", "batch"), [("fsdp", 2, 2), ("tp", 2, 4), ("fsdp_tp", 4, 2)])
def test_a_trainer_file_starts_and_saves_what_one_process_saves(
    file, devices, batch, network, processes, lightning_gpt, recipe
):
    alone = lightning_gpt("fit", "-c", network, "--run.name", "alone") / "checkpoints" / "last.ckpt"
    many = ["-c", CONFIGS / f"{file}.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", devices]
    many += ["--trainer.precision", "32-true", "--data.batch_size", batch, "--run.name", "many"]
    processes(devices, ["fit", "-c", recipe, "-c", network, *many])
    saved = alone.parents[3] / "many" / "version_0" / "checkpoints" / "last.ckpt"
    ours, theirs = read_checkpoint(saved)["state_dict"], read_checkpoint(alone)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)
    assert load_checkpoint(saved)[0].config.n_kv_head == 2


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (lambda: FullySharded(tensor_parallel=3), "tensor_parallel=3 does not divide the 2 devices .* one of 1, 2"),
        (lambda: FullySharded(tensor_parallel=4), "tensor_parallel=4 does not divide the 2 devices"),
        (lambda: FullySharded(shard_size=3), "shard_size=3 does not divide the 2 data-parallel processes"),
        (lambda: FullySharded(tensor_parallel=0), "tensor_parallel=0 must be at least 1"),
        (lambda: TensorParallel(size=4), "size=4 leaves trainer.devices=2 no equal part: set trainer.devices=4"),
        (lambda: TensorParallel(size=0), "size=0 must be at least 1"),
    ],
)
def test_sizes_are_refused_before_processes_start(strategy, told):
    with pytest.raises(ValueError, match=told):
        Trainer(accelerator="cpu", devices=2, strategy=strategy(), logger=False)


def error_of(outcomes) -> str:
    """The one line of a command that was refused, told by one of its ranks."""
    text = "".join(outcome.text for outcome in outcomes)
    lines = [line for line in text.splitlines() if "error:" in line]
    assert all(outcome.code for outcome in outcomes) and len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


MISTAKES = {  # strategy, model settings, what the one line says
    "heads": (CUT, {"config": {"n_head": 1}}, "2 devices does not divide model.config.n_head=1: use one of 1"),
    "8 bits": (SHARDED, {"optimizer": {"class_path": "lightning_gpt.optim.AdamW8bit"}}, "AdamW8bit works on whole"),
}


def test_mistakes_are_named_in_one_line(start_processes, recipe, tmp_path):
    groups = []
    for mistake, (strategy, model, told) in MISTAKES.items():
        stacked = tmp_path / f"{mistake}.yaml"
        settings = {"model": {"init_args": model}, "trainer": {"devices": 2, "strategy": {"class_path": strategy}}}
        stacked.write_text(yaml.safe_dump(settings))
        groups.append((start_processes(2, ["fit", "-c", recipe, "-c", stacked]), told))
    for group, told in groups:
        assert told in error_of(group.join(60))


def test_layers_that_are_cut_are_not_compiled():
    strategy = TensorParallel()
    strategy.tensor_parallel = 2
    with pytest.raises(ValueError, match=r"model.compile=true cannot compile layers"):
        compile_blocks(GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=2, n_embd=8)), strategy)


def test_tasks_that_cannot_be_spread_are_refused(start_processes, tiny_model, tiny_clip, squares, pair_rows, tmp_path):
    reward = {"class_path": "lightning_gpt.rewards.Lexicon"}
    talks = {"train": str(squares.parent / "talks.jsonl"), "chat_template": "plain"}
    tasks = {  # model settings, data settings, what the one line says
        "GRPO": (
            {"init_from": str(tiny_model), "reward": reward, "max_new_tokens": 4},
            "PromptData",
            {"train": str(pair_rows)},
            "GRPO draws",
        ),
        "CLIP": ({"init_from": str(tiny_clip)}, "ImageTextData", {"train": str(squares)}, "cannot spread CLIP"),
        "LLaVA": (
            {"init_from": str(tiny_model), "tower": str(tiny_clip)},
            "VisionInstructionData",
            talks,
            "cannot spread LLaVA",
        ),
    }
    groups = []
    for task, (model, data, rows, told) in tasks.items():
        settings = {
            "model": {"class_path": f"lightning_gpt.tasks.{task}", "init_args": model},
            "data": {"class_path": f"lightning_gpt.data.{data}", "init_args": {**rows, "batch_size": 4}},
            "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "strategy": {"class_path": SHARDED}},
        }
        path = tmp_path / f"{task}.yaml"
        path.write_text(yaml.safe_dump(settings))
        groups.append((start_processes(1, ["fit", "-c", path]), told))
    for group, told in groups:
        assert told in error_of(group.join(60))
