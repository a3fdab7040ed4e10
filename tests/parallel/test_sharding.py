"""Two fully sharded processes are one process on the same global batch."""

import os
import subprocess
import sys

import pytest
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import load_checkpoint

# The balance loss is left out: it is no mean over tokens, each process has its own.
EXPERTS = {"bias": False, "moe": {"experts": 4, "expert_hidden": 32, "balance": "bias", "bias_rate": 0.1}}


@pytest.mark.parametrize("config", [{}, EXPERTS], ids=["dense", "experts"])
def test_two_sharded_processes_equal_one(config, lightning_gpt, recipe, tmp_path):
    network = tmp_path / "network.yaml"
    network.write_text(yaml.safe_dump({"model": {"init_args": {"config": config}}}))
    common = (
        "-c",
        network,
        "--trainer.max_steps",
        4,
        "--trainer.log_every_n_steps",
        1,
        "--trainer.val_check_interval",
        2,
    )
    one = lightning_gpt("fit", *common, "--data.batch_size", 4, "--run.name", "one")
    command = [sys.executable, "-m", "lightning_gpt", "fit", "-c", str(recipe), *map(str, common)]
    strategy = tmp_path / "sharded.yaml"
    strategy.write_text("trainer: {devices: 2, strategy: {class_path: lightning_gpt.parallel.FullySharded}}")
    command += ["-c", str(strategy)]
    command += ["--data.batch_size", "2", "--run.name", "two", "--run.dir", str(one.parent.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=240, capture_output=True)
    two = one.parent.parent / "two" / "version_0"
    for ours, theirs in zip(read_metrics(one / "metrics.jsonl"), read_metrics(two / "metrics.jsonl"), strict=True):
        for key in ("train/loss", "val/loss", "optim/gradient_norm", "experts/0/max_violation"):
            assert (key in ours) == (key in theirs)
            if key in ours:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
    # Checkpoints are whole files, as without sharding.
    net, _ = load_checkpoint(two / "checkpoints" / "last.ckpt")
    assert net.config.n_layer == load_checkpoint(one / "checkpoints" / "last.ckpt")[0].config.n_layer
