"""The trainer files start, many processes resume from one's checkpoint and one from theirs, and mistakes are named."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import load_checkpoint
from lightning_gpt.hub.checkpoint import read_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs" / "trainer"
SHARDED = "lightning_gpt.parallel.FullySharded"
CUT = "lightning_gpt.parallel.TensorParallel"
MUON = {"class_path": "lightning_gpt.optim.MuonAdamW", "init_args": {"precision": "fp32"}}


def on_cpu(devices: int) -> list:
    return ["--trainer.accelerator", "cpu", "--trainer.devices", devices]


@pytest.mark.parametrize(("file", "devices"), [("fsdp", 2), ("tp", 2), ("fsdp_tp", 4)])
def test_a_trainer_file_starts_and_its_checkpoints_go_everywhere(file, devices, processes, lightning_gpt, recipe):
    """One process trains two steps, many go on for two, one goes on again; and one makes all six alone."""
    fit = ["fit", "-c", recipe, "--model.config.feed_forward", "swiglu", "--trainer.val_check_interval", 2]
    fit += ["--model.optimizer.init_args.eps", 1e-5]
    many = ["-c", CONFIGS / f"{file}.yaml", *on_cpu(devices), "--trainer.precision", "32-true"]
    many += ["--data.batch_size", {"fsdp": 2, "tp": 4, "fsdp_tp": 2}[file]]
    whole = lightning_gpt(*fit, "--run.name", "whole")
    fit += ["--run.name", "parts", "--model.schedule.init_args.decay_steps", 6]
